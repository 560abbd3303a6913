"""The words of writing: what a caller asks for, and how each file ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from services.runtime.errors import LodestoneError

if TYPE_CHECKING:
    from services.io.model import Signature

ABSENT = b""
"""Stands for the digest of a file that is not there."""

UNKNOWN = bytes(32)
"""Stands for the digest of a file that is too large to be read."""


class Durability(StrEnum):
    """How hard a change is made to last before it is answered."""

    STRONG = "strong"
    BEST_EFFORT = "best_effort"


class Splice(NamedTuple):
    """Bytes `start` to `end` are replaced; `position` is that of the edit in its request."""

    start: int
    end: int
    replacement: bytes
    file_digest: bytes
    position: int


@dataclass(frozen=True, slots=True)
class FileEdits:
    """The edits of one file, in the order of the request: made together or not at all."""

    path: str
    splices: tuple[Splice, ...]


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to create."""

    path: str
    content: bytes
    overwrite: bool = False
    create_parents: bool = False


Change = FileEdits | NewFile


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """Some changes under one id; `fingerprint` tells one request from another of the same id."""

    request_id: str
    fingerprint: bytes
    root: str
    directory: str
    changes: tuple[Change, ...]
    durability: Durability = Durability.STRONG
    origin_id: str = ""

    @property
    def is_strong(self) -> bool:
        """Whether the change must be on the disk before it is answered."""
        return self.durability is Durability.STRONG


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file after a change."""

    digest: bytes
    signature: Signature
    size_delta: int


Outcome = WrittenFile | LodestoneError


class Intent(NamedTuple):
    """What a change is about to make of a file: digests before and after, and what it grows."""

    old_digest: bytes
    new_digest: bytes
    size_delta: int
    linked_folder: tuple[str, str] | None = None
    """Root and folder of the file, where links lead to another folder than that of its path."""
