"""Ranks: processes that share one model, and how the first leads the others through its steps (docs/scaling.md)."""
