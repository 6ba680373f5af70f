"""`equicat data import`: a group's own relaxations as a data set."""
