"""Vibrations of adsorbates and molecules by batched finite differences, and the free energies that follow from them."""
