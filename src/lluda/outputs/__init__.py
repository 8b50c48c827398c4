"""Where speech goes: a file, a pipe, a sound device."""
