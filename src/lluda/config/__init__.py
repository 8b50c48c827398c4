"""Every number of a config.json, read strictly: one file a component."""
