"""A fitted model on disk, and what is done with it: loaded, started from, used, exported, published."""
