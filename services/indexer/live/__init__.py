"""Live workspaces: what changes is indexed as it changes."""
