"""How well turns are found in recordings with pauses, noise and music: ``python -m tools.turns --help``."""
