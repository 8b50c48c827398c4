"""Writing checkpoints: synth, pack, quantize, and the writers of both file formats."""
