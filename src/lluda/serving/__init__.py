"""HTTP on top of the engine: wire formats, status codes, admission. No model code, no tensors."""
