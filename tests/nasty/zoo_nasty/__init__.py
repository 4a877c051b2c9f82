"""Parts that go wrong in every way a plugin can, and small ones that go well."""
