"""Tasks from a user's own files. Importing this package, or the modules that its entry points name, loads no torch."""
