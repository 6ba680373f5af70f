"""A trained model on data."""
