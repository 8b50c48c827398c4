"""The input side: sound that comes in, cut into turns."""
