"""Nodes of very many pieces are read, in as many requests as it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.io_client import IoClient
from services.indexer.model import ClaimedNode, NodeId, Tree
from services.io.app import IoApp
from services.io.content import content_hash, file_digest, normal_form
from services.io.settings import IoSettings
from services.runtime.channel import connect
from tests.integration.indexing import Service

if TYPE_CHECKING:
    from pathlib import Path

_NODES = 100
_PIECES = 6000
_LINE = b"value = 1\n"


def _node(number: int, data: bytes) -> ClaimedNode:
    """Returns a node of many pieces at the end of a file; each one is another."""
    starts = range(len(data) - (_PIECES + number) * len(_LINE), len(data), len(_LINE))
    pieces = [(start, start + len(_LINE) - 1) for start in starts]
    return ClaimedNode(
        id=NodeId(number),
        fence=1,
        attempt=1,
        content_hash=content_hash(normal_form(data, pieces)),
        path="a.py",
        digest=file_digest(data),
        qualified_name="A",
        ranges=tuple(end for piece in pieces for end in piece),
    )


async def test_nodes_of_more_pieces_than_a_request_has_room_for_are_read(
    roots: Path, sockets: Path
) -> None:
    """Red with one request for all: none of them is read."""
    data = _LINE * (2 * _PIECES)
    (roots / "a.py").write_bytes(data)
    nodes = [_node(number, data) for number in range(_NODES)]
    settings = IoSettings(listen=f"unix:{sockets}/io", roots=f"trees={roots}", parse_workers=1)
    service = Service(settings, lambda: IoApp(settings))
    await service.start()
    async with connect(settings.listen) as channel:
        texts = await IoClient(channel, 60).read_contents(Tree("roots/trees", ""), nodes)
    await service.stop()

    line = _LINE.decode().rstrip()
    assert texts == ["\n".join([line] * (_PIECES + number)) for number in range(_NODES)]
