"""Choosing tokens: what a request asks, the checkpoint's defaults, logits to ids, and where an answer ends."""
