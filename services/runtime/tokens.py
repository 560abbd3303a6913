"""Bearer tokens: random strings, of which a file holds SHA-256 digests and what each may do."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from prometheus_client import Counter
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.runtime.access import EVERYTHING, Identity, Scope
from services.runtime.errors import UnauthenticatedError
from services.runtime.exits import ExitCode, StartError
from services.runtime.file_watch import FileWatch
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path

TOKEN_PREFIX = "lds_"  # noqa: S105 - what scanners for leaked secrets look for
_TOKEN_BYTES = 32
_MAX_FILE_BYTES = 4 << 20
_BEARER = "bearer "

CALLS_REFUSED = Counter(
    "lodestone_calls_refused_total",
    "Calls refused for want of an identity or a right.",
    ("reason",),
)

Pattern = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}\*?$|^\*$")]


class TokenEntry(BaseModel):
    """One accepted token; two of one name are how a token is rotated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[a-z0-9]{1,32}$")]
    """Names the entry, e.g. to revoke it; tells nothing about the token."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,63}$")]
    """Who holds it."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of the token. A token has 256 random bits, so that one round of a fast hash will do:
    there is no list of likely ones to try."""

    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    """What it may do."""

    workspaces: tuple[Pattern, ...] = (EVERYTHING,)
    """Ids of workspaces, or their beginnings with a `*` behind."""

    roots: tuple[Pattern, ...] = (EVERYTHING,)
    """Ids of roots, likewise."""

    expires_at: datetime | None = None
    """When it stops to be accepted, by this machine's clock; with a time zone."""

    def identity(self) -> Identity:
        """Returns who presents the token."""
        return Identity(self.name, frozenset(self.scopes), self.workspaces, self.roots)

    def is_expired(self, now: datetime) -> bool:
        """Returns whether it is too late for it."""
        if self.expires_at is None:
            return False
        end = self.expires_at
        return now >= (end if end.tzinfo else end.replace(tzinfo=UTC))


class TokenList(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[TokenEntry, ...] = ()


def new_token() -> str:
    """Returns a new random token."""
    return TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def digest_of(token: str) -> str:
    """Returns what the file holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_token_list(path: Path) -> TokenList:
    """Returns what a file of accepted tokens holds.

    Raises:
        StartError: it cannot be read, or is not such a file; the message repeats nothing of it.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise StartError(ExitCode.USAGE, f"{path} is too large for a file of tokens.")
        return TokenList.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise StartError(
            ExitCode.USAGE, f"The file of accepted tokens {path} cannot be read: {error.strerror}."
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StartError(
            ExitCode.USAGE,
            f"The file of accepted tokens {path} is wrong at {where}: {first['msg']}.",
        ) from None
    except ValueError:
        raise StartError(
            ExitCode.USAGE, f"The file of accepted tokens {path} is not valid JSON."
        ) from None


@dataclass(slots=True)
class _Loaded:
    entries: list[tuple[bytes, TokenEntry]]

    def find(self, digest: bytes) -> TokenEntry | None:
        """Returns the token of a digest, if it is accepted."""
        found: TokenEntry | None = None
        for accepted, entry in self.entries:  # all of them: the time tells no digest
            if hmac.compare_digest(accepted, digest):
                found = entry
        return found


class AcceptedTokens:
    """The tokens that a service accepts; a changed file counts within a second or so."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watch = FileWatch(path)
        self._loaded = _loaded(read_token_list(path))

    @property
    def has_restricted(self) -> bool:
        """Whether a token is for some workspaces alone."""
        return any(EVERYTHING not in entry.workspaces for _, entry in self._loaded.entries)

    def identify(self, authorization: str | None) -> Identity:
        """Returns who presents an `authorization` header.

        Raises:
            UnauthenticatedError: there is none, or no token like it is accepted now.
        """
        if self._watch.changed():
            self._reload()
        if authorization is None or authorization[: len(_BEARER)].lower() != _BEARER:
            CALLS_REFUSED.labels("no_token").inc()
            raise UnauthenticatedError("The call needs a bearer token (metadata `authorization`).")
        digest = digest_of(authorization[len(_BEARER) :].strip()).encode()
        found = self._loaded.find(digest)
        if found is None and self._watch.changed(at_once=True):  # one that was made just now
            self._reload()
            found = self._loaded.find(digest)
        if found is None:
            CALLS_REFUSED.labels("unknown_token").inc()
            raise UnauthenticatedError("The token is not known.")
        if found.is_expired(datetime.now(UTC)):
            CALLS_REFUSED.labels("expired_token").inc()
            raise UnauthenticatedError("The token has expired.")
        return found.identity()

    def _reload(self) -> None:
        try:
            self._loaded = _loaded(read_token_list(self._path))
        except StartError as error:
            # Half written, or wrong: those that were accepted stay so, and somebody is told.
            if self._watch.failed(error.message):
                get_logger().error("tokens_not_reloaded", reason=error.message)
        else:
            get_logger().info("tokens_reloaded", count=len(self._loaded.entries))


def _loaded(tokens: TokenList) -> _Loaded:
    return _Loaded([(entry.sha256.encode(), entry) for entry in tokens.tokens])


class OwnToken:
    """The token that a process presents; the file is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watch = FileWatch(path)
        self._header = self._read()

    @property
    def header(self) -> str:
        """Value of the `authorization` header."""
        if self._watch.changed():
            try:
                self._header = self._read()
            except StartError as error:
                if self._watch.failed(error.message):
                    get_logger().error("tokens_not_reloaded", reason=error.message)
        return self._header

    def _read(self) -> str:
        try:
            token = self._path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            raise StartError(
                ExitCode.USAGE,
                f"The token in {self._path} cannot be read (LODESTONE_TOKEN_FILE).",
            ) from None
        if not token or any(character.isspace() for character in token):
            raise StartError(ExitCode.USAGE, f"{self._path} holds no token (LODESTONE_TOKEN_FILE).")
        return f"Bearer {token}"
