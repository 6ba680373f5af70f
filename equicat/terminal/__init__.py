"""Words for those who wait."""
