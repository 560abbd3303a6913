"""Puts a file in place as a whole: whoever looks sees the old bytes or the new ones.

A temporary file in the same folder is written, flushed and renamed; then the folder is flushed. A
process that dies in between leaves the old file, or the new one, and at most a temporary file.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.io.attributes import keep_attributes
from services.io.errors import ContentChangedError, NotProvenDurableError
from services.io.interruptions import insist
from services.io.targets import is_unchanged
from services.io.temporaries import create_temporary, same_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.io.origins import Origins
    from services.io.targets import Place, Target
    from services.io.temporaries import Sweeper, Temporary

_NEW_FILE_MODE = 0o666  # less the process's umask, as any program creates files


@dataclass(frozen=True, slots=True)
class PutOptions:
    """How a file is put in place, the same for all files of one request."""

    is_strong: bool
    origin_id: str
    origins: Origins
    sweeper: Sweeper
    before_rename: Callable[[], None] = lambda: None
    """Called when the new file is ready and nothing is in place yet; what it raises ends that."""


def replace_file(
    target: Target, digest: bytes | None, content: bytes, options: PutOptions
) -> os.stat_result:
    """Replaces a locked file; returns what `fstat` says of the new one.

    `digest` is what the file must have until the rename; None replaces whatever there is. Mode,
    owner and extended attributes are kept as far as the process may set them. Other hard
    links of the old file keep the old bytes.

    Raises:
        ContentChangedError: somebody without a lock changed it meanwhile.
        NotProvenDurableError: it is in place, and its folder could not be flushed.
        OSError: the operating system refused; the old file is in place.
    """
    place = target.place
    with _filled(place, content, options, mode=0o600, like=target) as temporary:
        if digest is not None and not is_unchanged(target, digest):
            raise ContentChangedError.at(place.path, "The file was changed meanwhile.")
        _record_origin(place, temporary, options)
        insist(lambda: _rename(place, temporary))
        flush_folder(place, is_strong=options.is_strong)
        return os.fstat(temporary.fd)


def create_file(place: Place, content: bytes, options: PutOptions) -> os.stat_result:
    """Creates a file that is not there; returns what `fstat` says of it.

    Raises:
        FileExistsError: there is something of this name, be it a link that leads nowhere.
        NotProvenDurableError: it is in place, and its folder could not be flushed.
        OSError: the operating system refused; nothing is in place.
    """
    with _filled(place, content, options, mode=_NEW_FILE_MODE) as temporary:
        _record_origin(place, temporary, options)
        # A link replaces nothing, unlike a rename.
        insist(lambda: _link(place, temporary))
        with suppress(OSError):  # a second name that is swept later harms nothing
            os.unlink(temporary.name, dir_fd=place.folder_fd)
        flush_folder(place, is_strong=options.is_strong)
        return os.fstat(temporary.fd)


def flush_folder(place: Place, *, is_strong: bool) -> None:
    """Makes the names of a folder last; only then may a change be called done.

    Raises:
        NotProvenDurableError: the operating system says that it may not have.
    """
    if not is_strong:
        return
    try:
        os.fsync(place.folder_fd)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "unknown")
        raise NotProvenDurableError.at(
            place.path,
            f"The change is in place, and may not be on the disk ({name}); repeat the request.",
            dependency="file system",
            errno=name,
        ) from None


@contextmanager
def _filled(
    place: Place, content: bytes, options: PutOptions, *, mode: int, like: Target | None = None
) -> Iterator[Temporary]:
    """Makes a temporary file with the content, flushed; what is not put in place is removed."""
    options.sweeper.meet(place.folder_fd)
    temporary = create_temporary(place.folder_fd, mode)
    try:
        _write_all(temporary.fd, content)
        if like is not None:
            keep_attributes(like.fd, like.status, temporary.fd)
        if options.is_strong:
            os.fsync(temporary.fd)
        options.before_rename()
        yield temporary
    except BaseException:
        with suppress(OSError):  # renamed already, or met by a later sweep
            os.unlink(temporary.name, dir_fd=place.folder_fd)
        raise
    finally:
        os.close(temporary.fd)


def _record_origin(place: Place, temporary: Temporary, options: PutOptions) -> None:
    status, folder = os.fstat(temporary.fd), os.fstat(place.folder_fd)
    options.origins.record(status, folder, place.name, options.origin_id)


def _write_all(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _rename(place: Place, temporary: Temporary) -> None:
    try:
        os.rename(
            temporary.name, place.name, src_dir_fd=place.folder_fd, dst_dir_fd=place.folder_fd
        )
    except FileNotFoundError:
        # An interrupted rename of a network file system may have been done.
        if not _is_in_place(place, temporary):
            raise


def _link(place: Place, temporary: Temporary) -> None:
    try:
        os.link(
            temporary.name,
            place.name,
            src_dir_fd=place.folder_fd,
            dst_dir_fd=place.folder_fd,
            follow_symlinks=False,
        )
    except FileExistsError:
        if not _is_in_place(place, temporary):
            raise


def _is_in_place(place: Place, temporary: Temporary) -> bool:
    try:
        found = os.stat(place.name, dir_fd=place.folder_fd, follow_symlinks=False)
    except OSError:
        return False
    return same_file(found, os.fstat(temporary.fd))
