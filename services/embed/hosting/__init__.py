"""Runs a backend in a process of its own, so that its death or its hanging is nobody else's."""
