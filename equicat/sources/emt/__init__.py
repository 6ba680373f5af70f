"""`equicat data emt`: a toy OC20 on ASE's EMT potential."""
