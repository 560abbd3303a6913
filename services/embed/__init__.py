"""Turns texts into vectors; touches no file of a workspace and no database."""

import os

# Before gRPC is loaded: its core writes lines that are no JSON, one for each handshake that fails.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
