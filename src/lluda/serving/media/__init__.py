"""Media of a request: parts of its messages, data URLs, and what is fetched from web addresses."""
