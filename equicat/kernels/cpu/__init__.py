"""Kernels in C++, compiled on first use."""
