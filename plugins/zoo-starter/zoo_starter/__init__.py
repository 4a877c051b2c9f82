"""Tiny backbones with their weights inside, and small real tasks."""
