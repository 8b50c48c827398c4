"""One file per group of routes; each exports ``ROUTES``."""
