"""Recordings written down: cut at pauses where they are long, heard piece by piece, and the forms of the answer."""
