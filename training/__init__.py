"""How models/tiny-omni was trained: data, stages, export. Beside the package, not part of it."""
