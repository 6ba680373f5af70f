"""`equicat train`."""
