"""`equicat bench`: measurements beside other packages, in one run."""
