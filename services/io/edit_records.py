"""What a journal keeps of a request, as lines of text: digests, sizes and outcomes, no content.

A line is the BLAKE3 of its text, cut to 16 hexadecimal digits, a space, and the text: JSON. What a
crash tore does not match, and it and what follows it count as never written. Later lines replace
what earlier ones said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from services.io import errors
from services.io.changes import Intent, WrittenFile
from services.io.content import file_digest
from services.io.model import Signature
from services.runtime.errors import InvalidRequestError, LodestoneError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from services.io.changes import Outcome

FORMAT = 1
MAX_FOLDERS = 256
"""Most folders of each kind that a record names for the sweep after a crash; temporary files in
others are removed when a later edit meets them."""

_CHECKSUM_DIGITS = 16
_FINAL_ERRORS: dict[str, type[LodestoneError]] = {
    kind.reason: kind
    for kind in (
        InvalidRequestError,
        errors.PathOutsideTreeError,
        errors.PathNotFoundError,
        errors.FileTooLargeError,
        errors.FileNotRegularError,
        errors.ContentChangedError,
        errors.InvalidUtf8Error,
        errors.RangeOutsideFileError,
        errors.PathExistsError,
    )
}
"""Errors that are answered again as they were. The others may pass (a full disk, a lock that is
held, rights that are mended), so that a repeated request tries again."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a request; `intents` and `outcomes` have one entry per change, or none.

    `folders` are those of its paths, beneath its tree. `linked_folders` are others to which links
    lead, each with its root.
    """

    fingerprint: bytes = b""
    root: str = ""
    directory: str = ""
    folders: tuple[str, ...] = ()
    intents: tuple[Intent | None, ...] = ()
    outcomes: tuple[Outcome | None, ...] = ()
    linked_folders: tuple[tuple[str, str], ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether the end of a change that was begun is not known: its process may have died."""
        return any(
            intent is not None and self.outcome_of(position) is None
            for position, intent in enumerate(self.intents)
        )

    def intent_of(self, position: int) -> Intent | None:
        """Returns what was about to be made of a change's file, as far as it is known."""
        return self.intents[position] if self.intents else None

    def without_intents(self, positions: Collection[int]) -> Record:
        """Returns the record without what an attempt was about to make and is known not to have."""
        intents = (None if p in positions else intent for p, intent in enumerate(self.intents))
        return replace(self, intents=tuple(intents))

    def outcome_of(self, position: int) -> Outcome | None:
        """Returns how a change ended for good, None when it did not."""
        return self.outcomes[position] if self.outcomes else None


def is_final(outcome: Outcome) -> bool:
    """Tells whether a repeated request is answered with this outcome."""
    return isinstance(outcome, WrittenFile) or outcome.reason in _FINAL_ERRORS


def intent_line(record: Record) -> bytes:
    """Returns the line that is written before anything is put in place."""
    linked = record.linked_folders[:MAX_FOLDERS]
    value = {
        "format": FORMAT,
        "request": record.fingerprint.hex(),
        "root": record.root,
        "directory": record.directory,
        "folders": record.folders[:MAX_FOLDERS],
        "intents": [
            intent and (intent.old_digest.hex(), intent.new_digest.hex(), intent.size_delta)
            for intent in record.intents
        ],
    }
    return _line(value | ({"linked_folders": linked} if linked else {}))


def outcome_line(
    fingerprint: bytes, outcomes: Sequence[Outcome], unmade: Collection[int] = ()
) -> bytes:
    """Returns the line that is written when all is done; only final outcomes are kept.

    `unmade` are the positions of changes of which nothing was put in place.
    """
    kept = [_outcome_value(outcome) if is_final(outcome) else None for outcome in outcomes]
    value = {"format": FORMAT, "request": fingerprint.hex(), "outcomes": kept}
    return _line(value | ({"unmade": sorted(unmade)} if unmade else {}))


def read_record(data: bytes) -> tuple[Record, int]:
    """Returns what lines say, and how many of the bytes are whole lines."""
    record, position = Record(), 0
    while (end := data.find(b"\n", position)) >= 0:
        checksum, _, text = data[position:end].partition(b" ")
        if checksum.decode("ascii", "replace") != _checksum(text):
            break
        record = _merged(record, json.loads(text))
        position = end + 1
    return record, position


def _merged(record: Record, value: dict[str, Any]) -> Record:
    record = replace(record, fingerprint=bytes.fromhex(value["request"]))
    if "intents" in value:
        record = replace(
            record,
            root=value["root"],
            directory=value["directory"],
            folders=tuple(value["folders"]),
            intents=tuple(
                item and Intent(bytes.fromhex(item[0]), bytes.fromhex(item[1]), item[2])
                for item in value["intents"]
            ),
            linked_folders=tuple((root, path) for root, path in value.get("linked_folders", ())),
        )
    if "outcomes" in value:
        outcomes = tuple(item and _outcome(item) for item in value["outcomes"])
        record = replace(record, outcomes=outcomes)
    return record.without_intents(value.get("unmade", ()))


def _outcome_value(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, WrittenFile):
        return {
            "digest": outcome.digest.hex(),
            "signature": tuple(outcome.signature[:4]),
            "size_delta": outcome.size_delta,
        }
    return {
        "reason": outcome.reason,
        "message": outcome.message,
        "metadata": outcome.metadata,
    }


def _outcome(value: dict[str, Any]) -> Outcome:
    if "digest" in value:
        signature = Signature(*value["signature"])
        return WrittenFile(bytes.fromhex(value["digest"]), signature, value["size_delta"])
    return _FINAL_ERRORS[value["reason"]](value["message"], metadata=value["metadata"])


def _line(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"%s %s\n" % (_checksum(text).encode(), text)


def _checksum(text: bytes) -> str:
    return file_digest(text).hex()[:_CHECKSUM_DIGITS]
