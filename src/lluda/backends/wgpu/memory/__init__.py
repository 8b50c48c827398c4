"""What lies on the device: matrices, vectors, keys and values."""
