"""The voice page: one file, served as it is but for the nonce of its script and style."""
