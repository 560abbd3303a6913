"""Changes files."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lodestone.io.v1 import edit_service_pb2_grpc
from services.io import convert_edits, metrics
from services.io.changes import WrittenFile
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from lodestone.io.v1 import edit_service_pb2
    from services.io.changes import Outcome, WriteRequest
    from services.io.writer import Writer


class EditServicer(edit_service_pb2_grpc.EditServiceServicer):
    """Changes files."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def ApplyEdits(
        self, request: edit_service_pb2.ApplyEditsRequest, _context: Any
    ) -> edit_service_pb2.ApplyEditsResponse:
        """Replaces byte ranges, each file by itself."""
        asked = convert_edits.edits_request(request)
        return convert_edits.edits_message(asked, await self._write(asked))

    async def CreateFile(
        self, request: edit_service_pb2.CreateFileRequest, _context: Any
    ) -> edit_service_pb2.CreateFileResponse:
        """Creates a file; its outcome is the call's."""
        [outcome] = await self._write(convert_edits.creation_request(request))
        if not isinstance(outcome, WrittenFile):
            raise outcome
        return convert_edits.creation_message(outcome)

    async def _write(self, request: WriteRequest) -> list[Outcome]:
        started = time.perf_counter()
        outcomes = await self._writer.write(request)
        seconds = time.perf_counter() - started
        metrics.WRITE_SECONDS.observe(seconds)
        written = sum(isinstance(outcome, WrittenFile) for outcome in outcomes)
        get_logger().info(
            "files_written",
            written=written,
            failed=len(outcomes) - written,
            durability=request.durability.value,
            seconds=round(seconds, 4),
        )
        return outcomes
