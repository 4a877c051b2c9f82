"""A learner is fitted: the gradient trainer, its snapshots and memory, metrics and timing."""
