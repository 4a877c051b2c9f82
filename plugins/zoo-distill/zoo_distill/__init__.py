"""Teacher-student distillation for zoo."""
