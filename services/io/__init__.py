"""The service that owns bytes: what is in a file, proven by digest."""

import os

# Before gRPC is loaded: its core writes lines that are no JSON, one for each handshake that fails.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
