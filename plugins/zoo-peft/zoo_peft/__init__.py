"""The methods of the peft library as adapters of zoo, by role, and adapters in peft's own format, in and out."""
