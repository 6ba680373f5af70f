"""OC20 in its own formats: its published files, readers for each, and `equicat data oc20`."""
