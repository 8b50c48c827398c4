"""Decoding of media files in child processes, and the limits of what is decoded."""
