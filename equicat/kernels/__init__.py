"""The costly operations of the networks: plain, on CPUs in C++, on GPUs in Triton."""
