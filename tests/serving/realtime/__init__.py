"""/v1/realtime, through a real websocket to a real server."""
