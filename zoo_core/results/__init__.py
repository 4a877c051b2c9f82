"""Results as rows on disk, their ranking and reports, and which of them are out of date. No torch."""
