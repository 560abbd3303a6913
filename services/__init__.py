"""Lodestone's services: io, embed and indexer, the runtime they share, and the command line."""
