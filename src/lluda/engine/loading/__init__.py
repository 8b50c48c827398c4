"""From a model's name to its network in memory: what to open, where it goes, whether it fits."""
