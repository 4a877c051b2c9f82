"""From the examples of a task to batches: splits, decoding, augmentation, loading, random draws."""
