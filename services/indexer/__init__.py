"""The indexer: what must be in the index, how far it is, and search over it."""

import os

# Before gRPC is loaded: its core writes lines that are no JSON, one for each handshake that fails.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
