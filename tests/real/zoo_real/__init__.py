"""A plugin for tests and benchmarks: sets of ../shared/data as tasks."""
