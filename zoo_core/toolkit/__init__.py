"""Building blocks that plugin authors may rely on."""
