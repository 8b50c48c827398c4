"""Several replicas of one model behind one address, by Ray Serve (docs/scaling.md)."""
