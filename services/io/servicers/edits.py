"""Changes files."""

from __future__ import annotations

from lodestone.io.v1 import edit_service_pb2_grpc


class EditServicer(edit_service_pb2_grpc.EditServiceServicer):
    """Editing is in the contract and not built yet: it answers UNIMPLEMENTED."""
