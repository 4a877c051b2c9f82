"""Text that names a composition, and what a path means where a name is expected. No torch."""
