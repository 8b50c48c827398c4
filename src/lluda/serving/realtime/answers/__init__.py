"""The output side: one response at a time, and its events."""
