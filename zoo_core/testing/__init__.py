"""The conformance kit, and toy parts for tests: small, exact in float64, with everything that tends to go wrong."""
