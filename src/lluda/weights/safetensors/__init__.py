"""safetensors: one file, a folder of shards, and formats that the file declares in its metadata."""
