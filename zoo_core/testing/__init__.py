"""Toy parts for tests of the core and of plugins: small, exact in float64, with everything that tends to go wrong."""
