"""``/v1/realtime``: a spoken conversation over one websocket."""
