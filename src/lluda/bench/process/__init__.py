"""One engine in a process of its own: its job, what it opens, and an end to it."""
