"""Barriers between two minima: nudged elastic bands, all images of all bands in one batch."""
