"""Steps: written down as launches, recorded, exchanged with the host."""
