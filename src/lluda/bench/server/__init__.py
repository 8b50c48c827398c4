"""A server under load: callers of its HTTP API, and what they see."""
