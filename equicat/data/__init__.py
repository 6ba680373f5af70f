"""Structures from files to batches: everything that models are trained on."""
