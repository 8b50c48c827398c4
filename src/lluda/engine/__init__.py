"""Who runs when, and memory."""
