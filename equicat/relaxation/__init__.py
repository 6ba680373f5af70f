"""Relaxations of many systems at once: optimisers over a batch, pairs that follow the atoms, results that survive."""
