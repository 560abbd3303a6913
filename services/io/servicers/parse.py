"""Cuts files into nodes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from lodestone.io.v1 import parse_service_pb2, parse_service_pb2_grpc
from services.io import convert, metrics
from services.io.content import PARSER
from services.io.parser.file import ParseLimits
from services.io.parser.languages import LANGUAGES
from services.io.parser.pool import ParseJob
from services.io.paths import Tree
from services.io.servicers.pages import page_size
from services.runtime.errors import PageTokenError
from services.runtime.failpoints import failpoint
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from concurrent.futures import Executor

    from lodestone.io.v1 import tree_pb2
    from services.io.model import Root
    from services.io.parser.pool import WorkerPool
    from services.io.roots import Roots

DEFAULT_MAX_TOKENS = 256


class ParseServicer(parse_service_pb2_grpc.ParseServiceServicer):
    """Cuts files into nodes."""

    def __init__(
        self,
        roots: Roots,
        executor: Executor,
        pool: WorkerPool,
        *,
        max_file_bytes: int,
        max_nodes: int,
    ) -> None:
        self._roots = roots
        self._executor = executor
        self._pool = pool
        self._max_file_bytes = max_file_bytes
        self._max_nodes = max_nodes

    async def ParseFiles(
        self, request: parse_service_pb2.ParseFilesRequest, _context: Any
    ) -> AsyncIterator[parse_service_pb2.ParseFilesResponse]:
        """Streams how each file ended, as they are ready."""
        await failpoint("io.parse.before")
        started = time.perf_counter()
        tokens = request.max_tokens or DEFAULT_MAX_TOKENS
        # A tree that is gone must fail the call: told file by file it would look like deletions.
        loop = asyncio.get_running_loop()
        roots = await loop.run_in_executor(self._executor, self._checked_roots, request.tree)
        job = ParseJob(
            roots,
            request.tree.directory,
            ParseLimits(self._max_file_bytes, self._max_nodes, tokens),
            tuple(convert.files_to_parse(request)),
        )
        outcomes: Counter[str] = Counter()
        nodes = 0
        try:
            async for answer in self._pool.parse(job):
                message = parse_service_pb2.ParseFilesResponse.FromString(answer)
                outcomes[message.WhichOneof("outcome") or ""] += 1
                nodes += len(message.parsed.nodes)
                yield message
            await failpoint("io.parse.after")
        finally:
            seconds = time.perf_counter() - started
            _count_parse(outcomes, nodes, seconds)
            metrics.PARSE_WORKERS.set(len(self._pool.pids))

    def _checked_roots(self, tree: tree_pb2.Tree) -> tuple[Root, ...]:
        """Returns the roots, that of the tree first, once the tree was opened."""
        roots = self._roots.with_first(self._roots.get(tree.root))
        Tree(roots[0], tree.directory, roots).close()
        return roots

    async def ListLanguages(
        self, request: parse_service_pb2.ListLanguagesRequest, _context: Any
    ) -> parse_service_pb2.ListLanguagesResponse:
        """Lists languages by name."""
        size, after = page_size(request.page_size), request.page_token
        names = [rules.name for rules in LANGUAGES]
        if after and after not in names:
            raise PageTokenError("The page token is not of this list.")
        rest = [rules for rules in LANGUAGES if rules.name > after]
        page = rest[:size]
        return parse_service_pb2.ListLanguagesResponse(
            languages=[convert.language_message(rules) for rules in page],
            next_page_token=page[-1].name if len(rest) > size else "",
            recipe=PARSER,
        )


def _count_parse(outcomes: Counter[str], nodes: int, seconds: float) -> None:
    for outcome, count in outcomes.items():
        metrics.PARSED_FILES.labels(outcome).inc(count)
    metrics.PARSED_NODES.inc(nodes)
    metrics.PARSE_SECONDS.observe(seconds)
    get_logger().info(
        "files_parsed",
        nodes=nodes,
        seconds=round(seconds, 4),
        parsed=outcomes["parsed"],
        unchanged=outcomes["unchanged"],
        skipped=outcomes["skipped"],
        failed=outcomes["error"],
    )
