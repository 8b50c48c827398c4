"""The trainable twin of lluda's networks: batched torch modules whose parameters have the checkpoint's names."""
