"""From the engine's events to OpenAI's objects and the events of their streams."""
