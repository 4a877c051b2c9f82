"""The residual networks for CIFAR of He et al. 2016 for zoo, with their own classifiers."""
