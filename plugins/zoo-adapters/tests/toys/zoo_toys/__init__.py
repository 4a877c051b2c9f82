"""A third-party plugin of toy backbones and a toy task, which the tests put on sys.path."""
