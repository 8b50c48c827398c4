"""From the pieces of an answer to OpenAI's objects and the events of their streams."""
