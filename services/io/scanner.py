"""Walks a tree and tells its files in byte order of their paths, one batch at a time.

A folder sorts as its name with a `/`, so that a depth-first walk yields full paths in byte order
and needs no list of the tree: it holds the entries of the folders above it, and one batch. A link
sorts as its name until it is found to lead to a folder.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from services.io.errors import NOT_FOLLOWED, FileUnreadableError, file_error
from services.io.folders import list_folder, read_lines
from services.io.ignore import IgnoreRules, IgnoreStack
from services.io.model import ScanBatch, ScannedFile, ScanSummary, ScanWarning, SkipReason
from services.io.names import JUNK_FOLDERS, VCS_FOLDERS, NameRules
from services.io.parser.languages import TEXT
from services.io.paths import MAX_NAME_BYTES, MAX_PATH_BYTES, Tree, real_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BATCH_FILES = 1000
MAX_DEPTH = 200
_TYPE_BITS, _REGULAR = 0o170000, stat.S_IFREG

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not `ScannedFile(...)`: its constructor is a function of Python, and called once a file.
_new_tuple = tuple.__new__


@dataclass(frozen=True, slots=True)
class ScanRules:
    """What a scan takes and what it leaves out."""

    max_file_bytes: int
    names: NameRules
    include: IgnoreRules = field(default_factory=lambda: IgnoreRules(()))
    exclude: IgnoreRules = field(default_factory=lambda: IgnoreRules(()))
    max_plain_text_bytes: int = 1 << 62
    """Largest file of a language without grammar: beyond it is data, not documentation."""


@dataclass(slots=True)
class _Folder:
    """A folder on the way down: it stays open while the walk is beneath it."""

    fd: int
    prefix: str
    ignores: IgnoreStack
    included: bool
    names: list[str]
    """What is left to be walked, last first; the name of a folder ends in `/`."""
    entries: dict[str, os.DirEntry[str]]
    max_plain_bytes: int
    """Up to which size a file here is taken, whatever else it is."""


class TreeScan:
    """One walk over one tree; iterate `batches` once, in a thread that may block."""

    def __init__(
        self, tree: Tree, rules: ScanRules, is_cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self._tree = tree
        self._rules = rules
        self._is_cancelled = is_cancelled
        self._files: list[ScannedFile] = []
        self._warnings: list[ScanWarning] = []
        self._skipped: Counter[SkipReason] = Counter()
        self._file_count = 0
        self._folder_count = 0
        self._warning_count = 0
        self._walked_links: set[tuple[int, int]] = set()
        self._max_bytes = rules.max_file_bytes
        self._max_text_bytes = rules.max_plain_text_bytes
        self._max_plain_bytes = min(self._max_bytes, self._max_text_bytes)

    def batches(self) -> Iterator[ScanBatch]:
        """Yields files in byte order; the last batch alone has the summary.

        A folder that cannot be read is a warning and the walk goes on. Ends without a summary when
        the scan is cancelled.
        """
        top = IgnoreStack.of_request(self._rules.exclude)
        stack: list[_Folder] = []
        try:
            self._enter(stack, self._top(), "", top, included=not self._rules.include)
            while stack:
                if self._is_cancelled():
                    return
                self._advance(stack)
                if len(self._files) >= BATCH_FILES or len(self._warnings) >= BATCH_FILES:
                    yield self._take_batch()
        finally:
            for folder in stack:
                os.close(folder.fd)
        yield self._last_batch()

    def _top(self) -> int:
        try:
            return os.dup(self._tree.fd)
        except OSError as error:
            raise file_error(error, self._tree.directory) from None

    def _take_batch(self) -> ScanBatch:
        batch = ScanBatch(self._files[:BATCH_FILES], self._warnings)
        self._file_count += len(batch.files)
        self._files = self._files[BATCH_FILES:]
        self._warnings = []
        return batch

    def _last_batch(self) -> ScanBatch:
        total = self._file_count + len(self._files)
        summary = ScanSummary(total, self._folder_count, self._warning_count, dict(self._skipped))
        return ScanBatch(self._files, self._warnings, summary)

    def _advance(self, stack: list[_Folder]) -> None:
        """Takes some entries of the deepest folder up to its next folder, or leaves it."""
        folder = stack[-1]
        names = folder.names
        if names and names[-1][-1] != "/":
            self._take_files(folder)
        if not names:
            stack.pop()
            os.close(folder.fd)
            return
        name = names[-1]
        entry = folder.entries[name]
        if entry.is_symlink():
            names.pop()
            self._follow(stack, folder, name)
        elif name[-1] == "/":
            names.pop()
            self._descend(stack, folder, entry.name)
        elif not entry.is_file(follow_symlinks=False):
            names.pop()
            self._skipped[SkipReason.SPECIAL] += 1

    def _take_files(self, folder: _Folder) -> None:
        """Takes files, at most a batch of them, up to an entry that is something else.

        The loop of the scan: it runs once a file, and every call in it takes a tenth of its time.
        It ends early when the scan is left: patterns may make a name take a second.
        """
        names, entries, prefix, included = (
            folder.names, folder.entries, folder.prefix, folder.included,
        )  # fmt: skip
        known, verdict_of = self._rules.names.known, self._rules.names.verdict
        ignored = folder.ignores.filter
        ignored_names, ignored_suffixes, globs = ignored.names, ignored.suffixes, ignored.globs
        append, new_tuple, max_bytes = self._files.append, _new_tuple, folder.max_plain_bytes
        taken = 0
        for name in islice(reversed(names), BATCH_FILES):
            if name[-1] == "/" or (globs and taken % 16 == 15 and self._is_cancelled()):
                break
            reason, language = known.get(name) or verdict_of(name)
            entry = entries[name]
            if (
                reason is not None
                or not included
                or name in ignored_names
                or name.endswith(ignored_suffixes)
                or (globs and ignored.may_match(name))
            ):
                is_left = reason is None and self._is_cancelled()
                if is_left or not entry.is_file(follow_symlinks=False):
                    break
                reason = reason or self._exclusion(folder, name, prefix + name)
                if reason is not None:
                    self._skipped[reason] += 1
                    taken += 1
                    continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError as error:
                if not entry.is_file(follow_symlinks=False):
                    break
                self._not_looked_at(prefix + name, error)
                taken += 1
                continue
            size = status.st_size
            if status.st_mode & _TYPE_BITS != _REGULAR or size > max_bytes:
                if not entry.is_file(follow_symlinks=False):
                    break
                self._add(prefix + name, language, status)
            else:
                mtime_ns, ctime_ns = status.st_mtime_ns, status.st_ctime_ns
                found = (prefix + name, size, mtime_ns, ctime_ns, status.st_ino, language)
                append(new_tuple(ScannedFile, found))
            taken += 1
        del names[len(names) - taken :]

    def _not_looked_at(self, path: str, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # else it went while we looked
            self._warn(path, file_error(error, path), is_directory=False)

    def _exclusion(self, folder: _Folder, name: str, path: str) -> SkipReason | None:
        """Returns whether an ignore file or the request leaves a file out."""
        is_excluded = folder.ignores.ignores(name, path, is_folder=False) or not (
            folder.included or self._rules.include.verdict(name, path, is_folder=False)
        )
        return SkipReason.IGNORED if is_excluded else None

    def _add(self, path: str, language: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            self._skipped[SkipReason.SYMLINK] += 1  # exchanged since it was listed: a link's own
            return
        size = status.st_size
        if size > self._max_bytes or (language == TEXT and size > self._max_text_bytes):
            self._skipped[SkipReason.TOO_LARGE] += 1
            return
        if len(path) > MAX_PATH_BYTES // 4 and len(path.encode()) > MAX_PATH_BYTES:
            self._warn(path, _too_deep(path), is_directory=False)
            return
        found = (path, size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, language)
        self._files.append(_new_tuple(ScannedFile, found))

    def _descend(self, stack: list[_Folder], folder: _Folder, name: str) -> None:
        """Enters a folder, unless it is left out or cannot be read."""
        path = folder.prefix + name
        if not self._is_walked(stack, folder, name, path):
            return
        try:
            fd = os.open(name, _FOLDER_FLAGS, dir_fd=folder.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            self._warn(path, file_error(error, path), is_directory=True)
            return
        self._enter_below(stack, folder, fd, name)

    def _is_walked(self, stack: list[_Folder], folder: _Folder, name: str, path: str) -> bool:
        if name in VCS_FOLDERS:
            self._skipped[SkipReason.VCS] += 1
            return False
        if (
            name in JUNK_FOLDERS
            or folder.ignores.ignores(name, path, is_folder=True)
            or not (folder.included or self._rules.include.may_match_beneath(path))
        ):
            self._skipped[SkipReason.IGNORED] += 1
            return False
        if len(stack) >= MAX_DEPTH or (
            len(path) >= MAX_PATH_BYTES // 4 and len(path.encode()) >= MAX_PATH_BYTES
        ):
            self._warn(path[:MAX_PATH_BYTES], _too_deep(path), is_directory=True)
            return False
        return True

    def _enter_below(self, stack: list[_Folder], folder: _Folder, fd: int, name: str) -> None:
        path = folder.prefix + name
        included = folder.included or bool(self._rules.include.verdict(name, path, is_folder=True))
        self._enter(stack, fd, f"{path}/", folder.ignores, included=included)

    def _enter(
        self, stack: list[_Folder], fd: int, prefix: str, ignores: IgnoreStack, *, included: bool
    ) -> None:
        """Lists a folder, reads its ignore files and puts it on the stack; owns `fd`."""
        try:
            listing = list_folder(fd)
        except OSError as error:
            os.close(fd)
            path = prefix.rstrip("/")
            if not stack:
                raise file_error(error, self._tree.directory) from None
            self._warn(path, file_error(error, path), is_directory=True)
            return
        if listing.is_repository and stack:
            os.close(fd)
            self._skipped[SkipReason.VCS] += 1
            return
        if listing.unnamed_count:
            self._skipped[SkipReason.NAME] += listing.unnamed_count
        self._folder_count += 1
        if listing.ignore_files:
            ignores = self._with_ignore_files(fd, prefix, ignores, listing.ignore_files)
        may_be_long = len(prefix) + MAX_NAME_BYTES > MAX_PATH_BYTES // 4
        max_plain_bytes = -1 if may_be_long else self._max_plain_bytes
        stack.append(
            _Folder(fd, prefix, ignores, included, listing.names, listing.entries, max_plain_bytes)
        )

    def _with_ignore_files(
        self, fd: int, prefix: str, ignores: IgnoreStack, names: Sequence[str]
    ) -> IgnoreStack:
        for name in names:
            try:
                rules = IgnoreRules(read_lines(fd, name))
            except OSError as error:
                path = prefix + name
                self._warn(path, file_error(error, path), is_directory=False)
                continue
            ignores = ignores.below(len(prefix), rules) if rules else ignores
        return ignores

    def _follow(self, stack: list[_Folder], folder: _Folder, told: str) -> None:
        """Takes what a symbolic link leads to; if that is a folder, enters it.

        A link into the tree itself is skipped, as its target is found where it lies; so is a second
        link to one folder. Both keep a walk over links finite.
        """
        path = folder.prefix + folder.entries[told].name
        try:
            held = self._tree.open_link(path)
        except OSError as error:
            if error.errno in NOT_FOLLOWED:
                self._skipped[SkipReason.SYMLINK] += 1
            else:  # a folder perhaps: nothing is known of what lies behind it
                self._warn(path, file_error(error, path), is_directory=True)
            return
        try:
            self._take_link(stack, folder, held, told)
        except OSError as error:
            self._warn(path, file_error(error, path), is_directory=True)
        finally:
            os.close(held)

    def _take_link(self, stack: list[_Folder], folder: _Folder, held: int, told: str) -> None:
        status = os.fstat(held)
        name = folder.entries[told].name
        path = folder.prefix + name
        identity = (status.st_dev, status.st_ino)
        if self._is_found_elsewhere(held, status) or identity in self._walked_links:
            self._skipped[SkipReason.SYMLINK] += 1
        elif told[-1] != "/" and stat.S_ISDIR(status.st_mode):
            _put_off(folder, name)
        elif told[-1] == "/" and not stat.S_ISDIR(status.st_mode):
            self._skipped[SkipReason.SYMLINK] += 1  # exchanged since it was put off
        elif stat.S_ISREG(status.st_mode):
            reason, language = self._rules.names.verdict(name)
            reason = reason or self._exclusion(folder, name, path)
            if reason is None:
                self._add(path, language, status)
            else:
                self._skipped[reason] += 1
        elif not stat.S_ISDIR(status.st_mode):
            self._skipped[SkipReason.SPECIAL] += 1
        elif self._is_walked(stack, folder, name, path):
            self._walked_links.add(identity)
            fd = os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._enter_below(stack, folder, fd, name)

    def _is_found_elsewhere(self, held: int, status: os.stat_result) -> bool:
        """Tells whether a link leads into the tree, above it, or to another link."""
        top, target = self._tree.real_path().rstrip("/") + "/", f"{real_path(held)}/"
        return target.startswith(top) or top.startswith(target) or stat.S_ISLNK(status.st_mode)

    def _warn(self, path: str, error: Exception, *, is_directory: bool) -> None:
        self._warning_count += 1
        self._warnings.append(ScanWarning(path, error, is_directory))


def _put_off(folder: _Folder, name: str) -> None:
    """Has a link to a folder come again where a folder of its name sorts, behind `name.py`."""
    told, at = f"{name}/", len(folder.names)
    while at and folder.names[at - 1] < told:
        at -= 1
    folder.names.insert(at, told)
    folder.entries[told] = folder.entries[name]


def _too_deep(path: str) -> FileUnreadableError:
    return FileUnreadableError.at(path[:MAX_PATH_BYTES], "The folder lies too deep to be walked.")
