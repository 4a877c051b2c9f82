"""Suites: which trials a grid declares, running one of them, and running them all."""
