"""How fast a model will be, before it is loaded: what a machine reads and multiplies, and what a model asks of it."""
