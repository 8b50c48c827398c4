"""How the values of a tensor lie in bytes: one file a format, found by name (`registry`). Importable by all; a format
knows neither files nor models nor backends. docs/formats.md words the formats that are lluda's own."""
