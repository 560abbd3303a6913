"""Two tenants of one set of services, each with an index of its own."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.runtime.access import Scope
from services.runtime.channel import connect
from services.runtime.tokens import digest_of, new_token
from tests.integration.indexing import Indexing, indexing
from tests.integration.samples import write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import grpc

CANARY = "heliotrope_canary"
"""A word that stands in the files of tenant a alone: in a path, a name and a text."""


@dataclass
class Tenants:
    """Services that ask for tokens, and a channel of each kind of caller."""

    services: Indexing
    tokens: dict[str, str]
    folder: Path

    def channel(self, who: str, service: str = "indexer") -> grpc.aio.Channel:
        """Returns a channel that shows somebody's token; an empty name shows none."""
        file = self.folder / f"token-{who}" if who else None
        if file is not None:
            file.write_text(self.tokens.get(who, "lds_garbage"), encoding="ascii")
        return connect(f"unix:{self.services.folder}/{service}", token_file=file)


@contextlib.asynccontextmanager
async def two_tenants(
    roots: Path, tmp_path: Path, sockets: Path, migrated_url: str
) -> AsyncIterator[Tenants]:
    """Yields two tenants, a- and b-, each with an indexed workspace; a's holds the canary."""
    tokens = {name: new_token() for name in ("service", "a", "b", "reader", "expired")}
    rights: dict[str, dict[str, Any]] = {
        "service": {"scopes": list(Scope)},
        "a": {"scopes": ["read", "run", "admin"], "workspaces": ["team-a-*"], "roots": ["trees"]},
        "b": {"scopes": list(Scope), "workspaces": ["team-b-*"], "roots": ["none"]},
        "reader": {"scopes": ["read"]},
        "expired": {"scopes": list(Scope), "expires_at": "2020-01-01T00:00:00Z"},
    }
    accepted = tmp_path / "accepted.json"
    entries = [
        {"id": name, "name": name, "sha256": digest_of(tokens[name]), **rights[name]}
        for name in tokens
    ]
    accepted.write_text(json.dumps({"tokens": entries}), encoding="utf-8")
    own = tmp_path / "own"
    own.write_text(tokens["service"], encoding="ascii")
    write_tree(roots / "a", **{f"{CANARY}_py": f"def {CANARY}():\n    return '{CANARY}'\n"})
    write_tree(roots / "b")
    settings = {"accepted_tokens_file": accepted, "token_file": own}
    async with indexing(roots, sockets, migrated_url, all_settings=settings) as services:
        for name in ("a", "b"):
            await services.create(f"team-{name}-web", name)
            await services.succeed(f"team-{name}-web")
        yield Tenants(services, tokens, tmp_path)
