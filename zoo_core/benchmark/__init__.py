"""A grid of trials is run: which they are, one of them, and all of them in worker processes."""
