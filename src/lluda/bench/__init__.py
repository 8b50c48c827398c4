"""Claims about speed and memory, measured side by side with peers."""
