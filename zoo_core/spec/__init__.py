"""Parses the text that names a composition, such as `backbone+adapter+head`. No torch is imported."""
