"""Which backbone for these data: candidates, scores of their features, the run of `zoo rank`."""
