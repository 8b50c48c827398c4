"""Recordings, images and videos, before tensors of a model."""
