"""GGUF files: their header, names in them and in the models, and lluda's layout of an Omni model."""
