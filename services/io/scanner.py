"""Walks a tree and tells its files in byte order of their paths, one batch at a time.

Names of Python compare by code point, which is the order of their UTF-8 bytes; a folder sorts as
its name with a `/`, so that a depth-first walk yields full paths in byte order and needs no list.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.io.errors import FileUnreadableError, file_error
from services.io.ignore import IGNORE_FILES, MAX_IGNORE_FILE_BYTES, IgnoreRules, IgnoreStack
from services.io.model import ScanBatch, ScannedFile, ScanSummary, ScanWarning, SkipReason
from services.io.names import JUNK_FOLDERS, VCS_FOLDERS, NameRules
from services.io.parser.languages import TEXT, language_by_name
from services.io.paths import MAX_PATH_BYTES, Tree, real_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH_FILES = 1000
MAX_DEPTH = 200
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class ScanRules:
    """What a scan takes and what it leaves out."""

    max_file_bytes: int
    names: NameRules
    include: IgnoreRules = field(default_factory=lambda: IgnoreRules(()))
    exclude: IgnoreRules = field(default_factory=lambda: IgnoreRules(()))
    max_plain_text_bytes: int = 1 << 62
    """Largest file of a language without grammar: beyond it is data, not documentation."""

    def largest(self, language: str) -> int:
        """Returns the size of the largest file of a language that is taken."""
        if language == TEXT:
            return min(self.max_file_bytes, self.max_plain_text_bytes)
        return self.max_file_bytes


@dataclass(slots=True)
class _Folder:
    """A folder on the way down: it stays open while the walk is beneath it."""

    fd: int
    prefix: str
    ignores: IgnoreStack
    included: bool
    entries: list[tuple[str, os.DirEntry[str]]]


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

    def batches(self) -> Iterator[ScanBatch]:
        """Yields files in byte order; the last batch alone has the summary.

        A folder that cannot be read is a warning and the walk goes on. Ends without a summary when
        the scan is cancelled.
        """
        top = IgnoreStack()
        if self._rules.exclude:
            top = top.below(0, self._rules.exclude)
        stack: list[_Folder] = []
        try:
            self._enter(stack, os.dup(self._tree.fd), "", top, included=not self._rules.include)
            while stack:
                if self._is_cancelled():
                    return
                self._advance(stack)
                if len(self._files) >= BATCH_FILES:
                    yield self._take_batch()
        finally:
            for folder in stack:
                os.close(folder.fd)
        yield self._last_batch()

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
        """Takes the files of the deepest folder up to its next folder, or leaves it."""
        folder = stack[-1]
        entries, prefix, fd = folder.entries, folder.prefix, folder.fd
        limit = len(self._files) + BATCH_FILES
        while entries and len(self._files) < limit:
            key, entry = entries.pop()
            if key[-1] == "/":
                if self._descend(stack, folder, entry):
                    return
            elif entry.is_file(follow_symlinks=False):
                self._take_file(folder, entry)
            elif entry.is_symlink():
                if self._follow(stack, folder, entry):
                    return
            else:
                self._skipped[SkipReason.SPECIAL] += 1
        if not entries:
            assert stack[-1] is folder, prefix
            stack.pop()
            os.close(fd)

    def _take_file(self, folder: _Folder, entry: os.DirEntry[str]) -> None:
        name = entry.name
        path = folder.prefix + name
        if self._is_left_out(folder, name, path):
            return
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return  # it went while we looked: it is not in the tree
        except OSError as error:
            self._warn(path, file_error(error, path), is_directory=False)
            return
        self._add(path, name, status)

    def _is_left_out(self, folder: _Folder, name: str, path: str) -> bool:
        reason = self._rules.names.skip_reason(name)
        if reason is None and (
            folder.ignores.levels and folder.ignores.ignores(name, path, is_folder=False)
        ):
            reason = SkipReason.IGNORED
        if reason is None and not (
            folder.included or self._rules.include.verdict(name, path, is_folder=False)
        ):
            reason = SkipReason.IGNORED
        if reason is not None:
            self._skipped[reason] += 1
        return reason is not None

    def _add(self, path: str, name: str, status: os.stat_result) -> None:
        language = language_by_name(name)
        if status.st_size > self._rules.largest(language):
            self._skipped[SkipReason.TOO_LARGE] += 1
            return
        if len(path) > MAX_PATH_BYTES // 4 and len(path.encode()) > MAX_PATH_BYTES:
            self._warn(path, _too_deep(path), is_directory=False)
            return
        self._files.append(
            ScannedFile(
                path,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
                status.st_ino,
                language,
            )
        )

    def _descend(self, stack: list[_Folder], folder: _Folder, entry: os.DirEntry[str]) -> bool:
        """Enters a folder; returns whether the walk now goes on beneath it."""
        name = entry.name
        path = folder.prefix + name
        if not self._is_walked(stack, folder, name, path):
            return False
        try:
            fd = os.open(name, _FOLDER_FLAGS, dir_fd=folder.fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._warn(path, file_error(error, path), is_directory=True)
            return False
        return self._enter_below(stack, folder, fd, name)

    def _is_walked(self, stack: list[_Folder], folder: _Folder, name: str, path: str) -> bool:
        if name in VCS_FOLDERS:
            self._skipped[SkipReason.VCS] += 1
            return False
        if name in JUNK_FOLDERS or folder.ignores.ignores(name, path, is_folder=True):
            self._skipped[SkipReason.IGNORED] += 1
            return False
        if len(stack) >= MAX_DEPTH or len(path.encode()) >= MAX_PATH_BYTES:
            self._warn(path[:MAX_PATH_BYTES], _too_deep(path), is_directory=True)
            return False
        return True

    def _enter_below(self, stack: list[_Folder], folder: _Folder, fd: int, name: str) -> bool:
        path = folder.prefix + name
        included = folder.included or bool(self._rules.include.verdict(name, path, is_folder=True))
        return self._enter(stack, fd, f"{path}/", folder.ignores, included=included)

    def _enter(
        self, stack: list[_Folder], fd: int, prefix: str, ignores: IgnoreStack, *, included: bool
    ) -> bool:
        """Lists a folder, reads its ignore files and puts it on the stack; owns `fd`."""
        try:
            entries = self._list(fd, is_top=not stack)
            if entries is not None:
                ignores = self._with_ignore_files(fd, prefix, ignores, {e[0] for e in entries})
        except OSError as error:
            os.close(fd)
            path = prefix.rstrip("/")
            if not stack:
                raise file_error(error, self._tree.directory) from None
            self._warn(path, file_error(error, path), is_directory=True)
            return False
        if entries is None:
            os.close(fd)
            self._skipped[SkipReason.VCS] += 1
            return False
        self._folder_count += 1
        stack.append(_Folder(fd, prefix, ignores, included, entries))
        return True

    def _list(self, fd: int, *, is_top: bool) -> list[tuple[str, os.DirEntry[str]]] | None:
        """Returns the entries, last first, or None for a repository of its own."""
        entries: list[tuple[str, os.DirEntry[str]]] = []
        with os.scandir(fd) as found:
            for entry in found:
                name = entry.name
                if not name.isascii() and not _is_utf8(name):
                    self._skipped[SkipReason.NAME] += 1
                    continue
                if name == ".git" and not is_top:
                    return None
                entries.append((f"{name}/" if entry.is_dir(follow_symlinks=False) else name, entry))
        entries.sort(key=_key_of, reverse=True)
        return entries

    def _with_ignore_files(
        self, fd: int, prefix: str, ignores: IgnoreStack, names: set[str]
    ) -> IgnoreStack:
        for name in IGNORE_FILES:
            if name not in names:
                continue
            try:
                rules = IgnoreRules(read_ignore_lines(fd, name))
            except OSError as error:
                path = prefix + name
                self._warn(path, file_error(error, path), is_directory=False)
                continue
            ignores = ignores.below(len(prefix), rules) if rules else ignores
        if self._rules.exclude and ignores.levels[0][1] is not self._rules.exclude:
            # What the caller leaves out goes before every ignore file.
            rest = tuple(level for level in ignores.levels if level[1] is not self._rules.exclude)
            ignores = IgnoreStack(((0, self._rules.exclude), *rest))
        return ignores

    def _follow(self, stack: list[_Folder], folder: _Folder, entry: os.DirEntry[str]) -> bool:
        """Takes what a symbolic link leads to; returns whether it is a folder, now entered.

        A link into the tree itself is skipped, as its target is found where it lies; so is a second
        link to one folder. Both keep a walk over links finite.
        """
        name = entry.name
        path = folder.prefix + name
        try:
            held = self._tree.open_link(path)
        except OSError:
            self._skipped[SkipReason.SYMLINK] += 1
            return False
        try:
            return self._take_link(stack, folder, held, name)
        except OSError as error:
            self._warn(path, file_error(error, path), is_directory=False)
            return False
        finally:
            os.close(held)

    def _take_link(self, stack: list[_Folder], folder: _Folder, held: int, name: str) -> bool:
        status = os.fstat(held)
        path = folder.prefix + name
        identity = (status.st_dev, status.st_ino)
        top = self._tree.real_path().rstrip("/") + "/"
        is_folder = stat.S_ISDIR(status.st_mode)
        if (
            f"{real_path(held)}/".startswith(top)
            or top.startswith(f"{real_path(held)}/")
            or identity in self._walked_links
            or stat.S_ISLNK(status.st_mode)
        ):
            self._skipped[SkipReason.SYMLINK] += 1
        elif stat.S_ISREG(status.st_mode):
            if not self._is_left_out(folder, name, path):
                self._add(path, name, status)
        elif not is_folder:
            self._skipped[SkipReason.SPECIAL] += 1
        elif self._is_walked(stack, folder, name, path):
            self._walked_links.add(identity)
            fd = os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            return self._enter_below(stack, folder, fd, name)
        return False

    def _warn(self, path: str, error: Exception, *, is_directory: bool) -> None:
        self._warning_count += 1
        self._warnings.append(ScanWarning(path, error, is_directory))


def _key_of(entry: tuple[str, os.DirEntry[str]]) -> str:
    return entry[0]


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_deep(path: str) -> FileUnreadableError:
    return FileUnreadableError.at(path[:MAX_PATH_BYTES], "The folder lies too deep to be walked.")


def read_ignore_lines(folder_fd: int, name: str) -> list[str]:
    """Returns the lines of an ignore file, none for what is no regular file.

    A link is not followed: git does not either.
    """
    if stat.S_ISLNK(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode):
        return []
    fd = os.open(name, _FILE_FLAGS, dir_fd=folder_fd)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        return file.read(MAX_IGNORE_FILE_BYTES).decode(errors="surrogateescape").split("\n")
