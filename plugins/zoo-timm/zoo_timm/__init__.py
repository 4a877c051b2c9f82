"""Backbones of the timm library for zoo, by name, by repository of the Hugging Face Hub, or from a local folder."""
