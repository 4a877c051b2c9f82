"""What belongs to processes and machines, not to models: interrupts, locks, malloc, atomic files. No torch."""
