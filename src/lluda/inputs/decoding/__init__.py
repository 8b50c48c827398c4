"""Decoding media files in a child process that may crash."""
