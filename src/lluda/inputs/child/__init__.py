"""Child processes that are bounded in memory and time, and their messages."""
