"""Programs that run in another package's environment, by their path; they import nothing of equicat."""
