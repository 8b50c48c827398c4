"""What clients send, as pydantic models: fields, ranges, and which fields are accepted without meaning."""
