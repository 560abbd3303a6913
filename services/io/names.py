"""What the name of a file or folder says about it: secrets, generated text, data, junk."""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING

from services.io.model import SkipReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


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

_TEMPORARY = re.compile(r"\.lodestone-[0-9a-f]{32}\.tmp")
_PLAIN_SUFFIX = re.compile(r"\*\.[A-Za-z0-9_]+")


class NameRules:
    """Tells from a file's name alone why it is skipped, or its language.

    Most names are decided by their suffix in one dictionary look-up: a scan asks once a file.
    """

    def __init__(self, extra_generated: Iterable[str] = ()) -> None:
        by_suffix: dict[str, SkipReason] = dict.fromkeys(
            (suffix.lower() for suffix in BINARY_SUFFIXES), SkipReason.BINARY
        )
        patterns: list[tuple[str, SkipReason]] = []
        for globs, reason in (
            ((*GENERATED_NAMES, *extra_generated), SkipReason.GENERATED),
            (SECRET_NAMES, SkipReason.SECRET),
        ):
            for glob in globs:
                if _PLAIN_SUFFIX.fullmatch(glob):
                    by_suffix[glob[2:].lower()] = reason
                else:
                    patterns.append((fnmatch.translate(glob), reason))
        self._by_suffix: Mapping[str, SkipReason] = by_suffix
        self._secret = _any_of(p for p, reason in patterns if reason is SkipReason.SECRET)
        self._generated = _any_of(p for p, reason in patterns if reason is SkipReason.GENERATED)

    def skip_reason(self, name: str) -> SkipReason | None:
        """Returns why a file of this name is skipped, or None. Secrets go before all else."""
        if is_temporary(name):
            return SkipReason.IGNORED
        if self._secret(name):
            return None if name in OPEN_NAMES else SkipReason.SECRET
        suffix = name.rpartition(".")[2].lower() if "." in name else ""
        reason = self._by_suffix.get(suffix)
        if reason is not None:
            return None if name in OPEN_NAMES else reason
        return SkipReason.GENERATED if self._generated(name) else None


def temporary_name(token: str) -> str:
    """Returns the name of a temporary file; `token` is 32 hexadecimal digits."""
    return f".lodestone-{token}.tmp"


def is_temporary(name: str) -> bool:
    """Tells whether a file is one that an io service writes before it puts it in place."""
    return name.startswith(".lodestone-") and _TEMPORARY.fullmatch(name) is not None


def _any_of(patterns: Iterable[str]) -> Callable[[str], re.Match[str] | None]:
    return re.compile("|".join(patterns) or r"(?!)", re.IGNORECASE).match
