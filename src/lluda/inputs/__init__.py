"""What a request brings, before it is tensors of a model: text, messages, media."""
