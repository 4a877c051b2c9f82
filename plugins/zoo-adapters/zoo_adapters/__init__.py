"""Native adapters and heads, by role."""
