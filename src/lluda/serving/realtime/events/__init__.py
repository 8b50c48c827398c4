"""Events of the websocket: what may come in, what goes out, and the beta's names for both."""
