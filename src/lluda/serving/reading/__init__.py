"""From the engine's events to the pieces of an answer: content, thoughts, calls, sound."""
