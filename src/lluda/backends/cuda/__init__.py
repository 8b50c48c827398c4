"""Triton kernels and captured steps on a GPU."""
