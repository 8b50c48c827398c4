"""Where what the model says goes."""
