"""The code graph: what names mean, and walks along what that gives."""
