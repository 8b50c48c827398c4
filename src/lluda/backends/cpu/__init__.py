"""Native kernels on the CPU."""
