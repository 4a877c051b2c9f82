"""A plugin for tests: its one backbone lies on the Hub, or in a folder laid out like a repository."""
