"""Claims about quality, measured."""
