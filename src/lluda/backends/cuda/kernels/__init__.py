"""The Triton kernels, a file for each step of a layer or of a choice of tokens."""
