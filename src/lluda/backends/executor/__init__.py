"""The torch executor: every component of the seam in torch operations, which reference, cpu and cuda share."""
