"""A plugin for tests: the sentences of SST-2 from a folder of their files, as a task."""
