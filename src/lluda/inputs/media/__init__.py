"""Recordings, pictures and videos, before tensors of a model."""
