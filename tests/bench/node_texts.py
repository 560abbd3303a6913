"""The texts that the model reads of an indexed tree, as `io` gives them."""

from __future__ import annotations

import random

import asyncpg

from lodestone.io.v1 import (
    parse_service_pb2,
    snippet_service_pb2,
    snippet_service_pb2_grpc,
    tree_pb2,
)
from services.runtime.channel import connect

_BATCH = 500


async def sample_texts(
    database_url: str, io_address: str, directory: str, count: int, seed: int = 7
) -> list[str]:
    """Returns `count` different texts of the nodes of the workspace over `directory`."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            """
            SELECT DISTINCT ON (n.content_hash) n.content_hash, f.path, f.digest,
              coalesce(n.segments, ARRAY[n.start_byte, n.end_byte]) AS ranges
            FROM nodes n JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
            JOIN workspaces w ON w.id = n.workspace_id WHERE w.directory = $1
            ORDER BY n.content_hash
            """,
            directory,
        )
    finally:
        await connection.close()
    chosen = random.Random(seed).sample(rows, min(count, len(rows)))
    channel = connect(io_address, service="io")
    stub = snippet_service_pb2_grpc.SnippetServiceStub(channel)
    texts: list[str] = []
    for start in range(0, len(chosen), _BATCH):
        response = await stub.ReadContents(
            snippet_service_pb2.ReadContentsRequest(
                tree=tree_pb2.Tree(root="roots/local", directory=directory),
                refs=[_ref(row) for row in chosen[start : start + _BATCH]],
            ),
            timeout=60,
        )
        texts += [result.content.text for result in response.results]
    await channel.close()
    assert all(texts), "every text of a fresh index can be read"
    return texts


def _ref(row: asyncpg.Record) -> snippet_service_pb2.ContentRef:
    ranges = row["ranges"]
    return snippet_service_pb2.ContentRef(
        path=row["path"],
        file_digest=row["digest"],
        content_hash=row["content_hash"],
        segments=[
            parse_service_pb2.ByteRange(start_byte=ranges[i], end_byte=ranges[i + 1])
            for i in range(0, len(ranges), 2)
        ],
    )
