"""The networks: edge vectors, indices and species in, features out. No positions, no cell, no autograd in here."""
