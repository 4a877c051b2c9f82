"""A third party's plugin in the tests: relational knowledge distillation, on public names of zoo-core alone."""
