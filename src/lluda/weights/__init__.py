"""Bytes on disk: checkpoint formats, where they come from, and how they become parameters."""
