"""HTTP itself: connections, bodies, streams, keys, errors and what every request passes; nothing of models."""
