"""What the name of a file or folder says about it: secrets, generated text, data, junk."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.io.model import SkipReason
from services.io.parser.languages import LANGUAGES_BY_NAME, language_by_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VCS_FOLDERS = frozenset({".git", ".hg", ".svn", ".bzr", ".jj", ".sl", "CVS", "_darcs", ".fossil"})

JUNK_FOLDERS = _words(
    """node_modules bower_components __pycache__ .venv venv .tox .nox .mypy_cache .ruff_cache
    .pytest_cache .hypothesis .eggs .gradle .idea .vs .next .nuxt .parcel-cache .turbo .terraform
    .cache .ipynb_checkpoints .import_linter_cache .yarn .pnpm-store .dart_tool .bundle
    .sass-cache"""
)
"""Folders that tools fill and nobody edits; they count as ignored."""

SECRET_NAMES = (
    ".env", ".env.*", "*.env", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore",
    "*.kdbx", "*.ppk", "*.asc", "*.gpg", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc",
    "_netrc", ".npmrc", ".pypirc", ".pgpass", ".htpasswd", ".git-credentials", "credentials",
    "credentials.json", "credentials.y*ml", "credentials.ini", "credentials.toml", "secrets.json",
    "secrets.y*ml", "secrets.toml", "service-account*.json", "*.tfstate", "*.tfstate.backup",
    "*.tfvars", ".dockercfg", "*.ovpn",
)  # fmt: skip
OPEN_NAMES = frozenset({
    ".env.example", ".env.sample", ".env.template", ".env.dist", ".env.defaults", "example.env",
})  # fmt: skip
"""Names that match a secret's and hold none: they show which settings there are."""

GENERATED_NAMES = (
    "*.po", "*.pot", "*.lock", "package-lock.json", "npm-shrinkwrap.json", "pnpm-lock.yaml",
    "go.sum", "*.min.js", "*.min.mjs", "*.min.css", "*.map", "*.svg", "*.csv", "*.tsv", "*.geojson",
    "*.ndjson", "*.jsonl", "*.pb.go", "*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi",
    "*.pb.cc", "*.pb.h", "*.g.dart", "*.designer.cs", "*.snap", "*.patch", "*.diff", "*.log",
    "*.bundle.js", "*.chunk.js", "*.ipynb", "*.sarif", "*.gml", "*.kml", "*.wkt", "*.har",
)  # fmt: skip

BINARY_SUFFIXES = _words(
    """png jpg jpeg gif bmp ico icns tif tiff webp avif heic psd ai eps pdf gz tgz bz2 xz zst lz4 7z
    rar zip tar whl egg jar war ear apk deb rpm dmg iso img mo gmo woff woff2 ttf otf eot so dylib
    dll exe bin o obj a lib pyc pyo pyd class wasm mp3 mp4 m4a ogg oga ogv wav flac avi mov mkv webm
    sqlite sqlite3 db mdb parquet arrow feather npy npz pkl pickle pt pth onnx safetensors h5 hdf5
    gguf joblib doc docx xls xlsx ppt pptx odt ods odp shp dbf shx prj cpg mmdb dat swp swo DS_Store
    pack idx rlib rmeta pdb nupkg crx xpi ttc br lzma z lib exr hdr dds blend fbx glb stl"""
)

MAX_SUFFIXES = 4096
"""Suffixes whose verdict is kept."""

MAX_KNOWN_NAMES = 32_768
"""Names whose verdict is kept, some 5 MB: names come again in other folders, and in later scans."""

Verdict = tuple[SkipReason | None, str]
"""Why a file is skipped, if it is, and its language."""

_Match = Callable[[str], re.Match[str] | None]
_TEMPORARY = re.compile(r"\.lodestone-[0-9a-f]{32}\.tmp")
_TEMPORARY_GLOB = ".lodestone-*.tmp"
_PLAIN_SUFFIX = re.compile(r"\*(\.[A-Za-z0-9_]+)")
_WILD = re.compile(r"[*?\[]")


class NameRules:
    """Tells from a file's name alone why it is skipped, or its language.

    A scan asks once a file, so most names are decided by their suffix in one dictionary look-up,
    beside which stands what else may be odd about names with that suffix, e.g. `.min.js`.
    """

    def __init__(self, extra_generated: Iterable[str] = ()) -> None:
        generated = (*GENERATED_NAMES, *extra_generated)
        by_suffix = {f".{suffix.lower()}": SkipReason.BINARY for suffix in BINARY_SUFFIXES}
        by_suffix |= dict.fromkeys(_plain_suffixes(generated), SkipReason.GENERATED)
        by_suffix |= dict.fromkeys(_plain_suffixes(SECRET_NAMES), SkipReason.SECRET)
        self._reasons: Mapping[str, SkipReason] = by_suffix
        secret, generated = map(_not_plain, (SECRET_NAMES, generated))
        self._is_secret = _any_of(secret)
        self._is_generated = _any_of(generated)
        odd = (*secret, *generated, *OPEN_NAMES, *LANGUAGES_BY_NAME, _TEMPORARY_GLOB)
        self._odd = _OddNames(odd)
        self._by_suffix: dict[str, tuple[Verdict, _Match | None]] = {}
        self.known: dict[str, Verdict] = {}
        """Verdicts of names that were asked for; a walk looks here first, once a file."""

    def verdict(self, name: str) -> Verdict:
        """Returns why a file of this name is skipped, or None, and its language."""
        found = self.known.get(name)
        if found is None:
            found = self._verdict(name)
            if len(self.known) < MAX_KNOWN_NAMES:
                self.known[name] = found
        return found

    def _verdict(self, name: str) -> Verdict:
        suffix = name[name.rfind(".") :]
        found = self._by_suffix.get(suffix)
        if found is None:
            if suffix[0] != ".":
                return self.skip_reason(name), language_by_name(name)
            found = self._verdict_of_suffix(suffix)
        verdict, is_odd = found
        if (is_odd is not None and is_odd(name)) or (
            name[0] in self._odd.starts and self._odd.by_start(name)
        ):
            return self.skip_reason(name), language_by_name(name)
        return verdict

    def skip_reason(self, name: str) -> SkipReason | None:
        """Returns why a file of this name is skipped, or None. Secrets go before all else."""
        if name in OPEN_NAMES:
            return None
        if is_temporary(name):
            return SkipReason.IGNORED
        if self._is_secret(name):
            return SkipReason.SECRET
        dot = name.rfind(".")
        reason = self._reasons.get(name[dot:].lower()) if dot >= 0 else None
        if reason is None and self._is_generated(name):
            return SkipReason.GENERATED
        return reason

    def _verdict_of_suffix(self, suffix: str) -> tuple[Verdict, _Match | None]:
        """Returns what holds for names with a suffix unless they are odd, and keeps it."""
        lower = suffix.lower()
        found = (self._reasons.get(lower), language_by_name(f"a{suffix}")), self._odd.of(lower)
        if len(self._by_suffix) < MAX_SUFFIXES:
            self._by_suffix[suffix] = found
        return found


def temporary_name(token: str) -> str:
    """Returns the name of a temporary file; `token` is 32 hexadecimal digits."""
    return f".lodestone-{token}.tmp"


def is_temporary(name: str) -> bool:
    """Tells whether a file is one that an io service writes before it puts it in place."""
    return name.startswith(".lodestone-") and _TEMPORARY.fullmatch(name) is not None


class _OddNames:
    """Tells cheaply which names may be odd: by their suffix, or else by their first letter."""

    def __init__(self, globs: Iterable[str]) -> None:
        self._by_suffix: dict[str, list[str]] = {}
        self._others: list[str] = []
        by_start: list[str] = []
        for glob in map(str.lower, globs):
            suffix = _suffix_of(glob)
            if suffix:
                self._by_suffix.setdefault(suffix, []).append(glob)
            elif not _WILD.match(glob):
                by_start.append(glob)
            else:
                self._others.append(glob)
        self.starts = frozenset("".join(glob[0] + glob[0].upper() for glob in by_start))
        self.by_start = _any_of(by_start)

    def of(self, suffix: str) -> _Match | None:
        """Returns what tells odd names among those of a suffix."""
        globs = self._others + self._by_suffix.get(suffix, [])
        return _any_of(globs) if globs else None


def _suffix_of(glob: str) -> str:
    """Returns the suffix that all names have which a glob matches, if it tells."""
    tail = _WILD.split(glob)[-1].rpartition("]")[2]
    return tail[tail.rfind(".") :] if "." in tail else ""


def _plain_suffixes(globs: Iterable[str]) -> list[str]:
    return [found[1].lower() for glob in globs if (found := _PLAIN_SUFFIX.fullmatch(glob))]


def _not_plain(globs: Iterable[str]) -> tuple[str, ...]:
    return tuple(glob for glob in globs if not _PLAIN_SUFFIX.fullmatch(glob))


def _any_of(globs: Iterable[str]) -> _Match:
    return re.compile("|".join(map(fnmatch.translate, globs)) or r"(?!)", re.IGNORECASE).match
