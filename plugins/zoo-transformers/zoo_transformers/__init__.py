"""Backbones of the transformers library: `hf/ORG/REPO` and `hf(files="DIR")`."""
