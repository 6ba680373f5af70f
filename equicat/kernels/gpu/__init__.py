"""Kernels in Triton, and CUDA graphs."""
