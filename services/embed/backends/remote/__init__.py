"""Embedding models behind an HTTP API of OpenAI's form: paced, retried, and cut off when dead."""
