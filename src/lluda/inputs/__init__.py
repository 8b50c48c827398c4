"""User text before it is tensors."""
