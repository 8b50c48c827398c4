"""From the bodies that clients send to what the engine is asked."""
