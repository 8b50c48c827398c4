"""The definition of correct: torch operations."""
