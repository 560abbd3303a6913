"""The indexer: what must be in the index, how far it is, and search over it."""
