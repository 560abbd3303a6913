"""Makes the change of one file, in a thread that may block: looks first, then puts it in place."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, assert_never

from services.io.atomic import create_file, flush_folder, replace_file
from services.io.changes import (
    ABSENT,
    UNKNOWN,
    Change,
    FileEdits,
    Intent,
    NewFile,
    WrittenFile,
)
from services.io.content import file_digest
from services.io.errors import (
    ContentChangedError,
    FileTooLargeError,
    PathExistsError,
    PathNotFoundError,
    file_error,
)
from services.io.interruptions import insist
from services.io.model import Signature
from services.io.splice import check_size, spliced
from services.io.targets import is_there, locked_target, opened_place, opened_target, read_target
from services.runtime.errors import InvalidRequestError, LodestoneError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.io.atomic import PutOptions
    from services.io.paths import Tree
    from services.io.targets import Place, Target


def look(
    tree: Tree, change: Change, max_bytes: int, *, known: Intent | None, is_strong: bool
) -> Intent | WrittenFile:
    """Returns what a change is about to make, or the file when an earlier attempt made it.

    Takes no lock and writes nothing. `known` is what an earlier attempt may have made, as it did
    not come to say: what is neither as it was before nor as it would be after was changed by
    others.

    Raises:
        LodestoneError: the change cannot be made.
    """
    try:
        with _told_as(change.path), opened_place(tree, change.path, follow=_follows(change)) as p:
            found = _look_at(p, change, max_bytes, known, is_strong=is_strong)
            if isinstance(found, WrittenFile):
                return found
            return found._replace(linked_folder=tree.linked_folder(p.folder_fd, change.path))
    except PathNotFoundError:
        if isinstance(change, NewFile) and change.create_parents:
            return _intent_of_new(change, ABSENT, 0, max_bytes)
        raise


def named_twice(tree: Tree, changes: Sequence[Change]) -> dict[int, LodestoneError]:
    """Returns the errors, by position, of edits whose paths lead to one file by links.

    Edits of one path stand together. Those of several cannot be told to be of one content: the
    first would be made and the second not.
    """
    by_place: dict[tuple[int, int, str], dict[int, FileEdits]] = {}
    for position, change in enumerate(changes):
        if isinstance(change, FileEdits):
            with suppress(LodestoneError, OSError):  # told when it is looked at
                with opened_place(tree, change.path) as place:
                    folder = os.fstat(place.folder_fd)
                key = (folder.st_dev, folder.st_ino, place.name)
                by_place.setdefault(key, {})[position] = change
    return {
        position: InvalidRequestError(
            "Two paths of the request lead to one file.",
            metadata={f"edits[{change.splices[0].position}].ref.path": "leads to another's file"},
        )
        for same in by_place.values()
        if len({change.path for change in same.values()}) > 1
        for position, change in same.items()
    }


def make(tree: Tree, change: Change, max_bytes: int, options: PutOptions) -> WrittenFile | None:
    """Makes a change under the lock of its file; None when somebody else holds that just now.

    Raises:
        NotProvenDurableError: the change is in place, and may not last.
        LodestoneError: the change was not made.
    """
    with _told_as(change.path):
        match change:
            case FileEdits():
                with opened_place(tree, change.path) as place, locked_target(place) as target:
                    return None if target is None else _edit(target, change, max_bytes, options)
            case NewFile():
                check_size(change.path, len(change.content), max_bytes)
                if change.create_parents:
                    _make_parents(tree, change.path, is_strong=options.is_strong)
                with opened_place(tree, change.path, follow=change.overwrite) as place:
                    return _create(place, change, options)
            case _:
                assert_never(change)


def _look_at(
    place: Place, change: Change, max_bytes: int, known: Intent | None, *, is_strong: bool
) -> Intent | WrittenFile:
    digest, data, size = ABSENT, b"", 0
    if known is None and isinstance(change, NewFile) and not change.overwrite and is_there(place):
        raise PathExistsError.at(change.path, "The file exists.", resource=change.path)
    try:
        with opened_target(place) as target:
            size = target.status.st_size
            try:
                data = read_target(target, max_bytes)
                digest = file_digest(data)
            except FileTooLargeError:
                if isinstance(change, FileEdits):
                    raise
                digest = UNKNOWN
            if known is not None and digest == known.new_digest:
                return _settle(target, known, is_strong=is_strong)
    except FileNotFoundError:
        if isinstance(change, FileEdits):
            raise
    if known is not None and digest != known.old_digest:
        if isinstance(change, NewFile) and not change.overwrite:
            raise PathExistsError.at(change.path, "The file exists.", resource=change.path)
        raise ContentChangedError.at(change.path, "The file was changed by others meanwhile.")
    if isinstance(change, FileEdits):
        content = spliced(data, digest, change, max_bytes)
        return Intent(digest, file_digest(content), len(content) - size)
    return _intent_of_new(change, digest, size, max_bytes)


def _intent_of_new(change: NewFile, digest: bytes, size: int, max_bytes: int) -> Intent:
    check_size(change.path, len(change.content), max_bytes)
    return Intent(digest, file_digest(change.content), len(change.content) - size)


def _settle(target: Target, known: Intent, *, is_strong: bool) -> WrittenFile:
    """Answers for a dead process that put its file in place and did not come to say so."""
    if is_strong:
        os.fsync(target.fd)
    flush_folder(target.place, is_strong=is_strong)
    return _written(known.new_digest, os.fstat(target.fd), known.size_delta)


def _edit(target: Target, edits: FileEdits, max_bytes: int, options: PutOptions) -> WrittenFile:
    data = read_target(target, max_bytes)
    digest = file_digest(data)
    content = spliced(data, digest, edits, max_bytes)
    status = replace_file(target, digest, content, options)
    return _written(file_digest(content), status, len(content) - len(data))


def _create(place: Place, change: NewFile, options: PutOptions) -> WrittenFile | None:
    size = 0
    try:
        status = None
        if change.overwrite:
            with locked_target(place) as target:
                if target is None:
                    return None
                size = target.status.st_size
                status = replace_file(target, None, change.content, options)
    except FileNotFoundError:
        status = None
    try:
        status = status or create_file(place, change.content, options)
    except FileExistsError:
        if change.overwrite:
            return None  # it came this moment: it is replaced by the next attempt
        raise PathExistsError.at(change.path, "The file exists.", resource=change.path) from None
    return _written(file_digest(change.content), status, len(change.content) - size)


def _make_parents(tree: Tree, path: str, *, is_strong: bool) -> None:
    """Makes the missing folders above a path, each flushed into the one above it.

    Those that are there are flushed too: an earlier attempt may have made them and died.
    """
    parts = path.split("/")
    for depth in range(1, len(parts)):
        with opened_place(tree, "/".join(parts[:depth]), follow=False) as place:
            with suppress(FileExistsError):
                insist(partial(os.mkdir, place.name, dir_fd=place.folder_fd))
            flush_folder(place, is_strong=is_strong)


def _written(digest: bytes, status: os.stat_result, size_delta: int) -> WrittenFile:
    signature = Signature(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return WrittenFile(digest, signature, size_delta)


def _follows(change: Change) -> bool:
    return isinstance(change, FileEdits) or change.overwrite


@contextmanager
def _told_as(path: str) -> Iterator[None]:
    """Tells what the operating system says by the path that the caller gave."""
    try:
        yield
    except OSError as error:
        raise file_error(error, path) from None
