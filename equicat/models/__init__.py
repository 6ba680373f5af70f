"""Models: a network with positions, cells, reference energies and derivatives around it."""
