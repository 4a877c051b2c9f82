"""Results as rows on disk, ranked and reported; which of them are out of date. No torch."""
