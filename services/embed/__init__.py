"""Turns texts into vectors; touches no file of a workspace and no database."""
