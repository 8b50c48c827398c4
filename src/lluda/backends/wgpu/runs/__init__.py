"""Encoders and code2wav as launches between rows of the host."""
