"""Models by name: local paths, and repositories on the Hub."""
