"""Lodestone as tools of an assistant, over the Model Context Protocol: a client like others."""
