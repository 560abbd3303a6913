"""The service that owns bytes: what is in a file, proven by digest."""
