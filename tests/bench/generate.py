"""Source trees of any size: files of small functions, each function with a text of its own."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILES_PER_FOLDER = 200
_VOCABULARY = """
account archive balance branch buffer cache client column commit cursor delta digest  engine event
field filter folder frame graph handle header index invoice journal key lease  ledger limit lock
merge message metric model node offset order owner packet page parser  path payload plan pool
query queue range record region request result route run scan schema  scope session shard signal
snapshot source span stage state store stream table task tenant  token trace tree user value
vector version watch window worker workspace
"""
_WORDS = _VOCABULARY.split()

_FUNCTION = '''

def {name}({first}, {second}):
    """Returns the {third} of a {first} and its {second} number {number}."""
    {third} = {first}.{second}({number})
    if not {third}:
        raise ValueError("{fourth} {number} has no {third}")
    return {third}
'''


def write_tree(folder: Path, *, files: int, functions: int, seed: int = 1) -> Path:
    """Writes files of functions; the docstring of each file's module is one node more.

    The same arguments give the same bytes.
    """
    draw = random.Random(seed)
    for number in range(files):
        path = file_path(folder, number)
        if number % FILES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.write_text(file_text(draw, number, functions), encoding="utf-8")
    return folder


def file_path(folder: Path, number: int) -> Path:
    """Returns where the file of a number lies."""
    return folder / f"package_{number // FILES_PER_FOLDER:04}" / f"module_{number:06}.py"


def file_text(draw: random.Random, number: int, functions: int) -> str:
    """Returns the text of a file."""
    parts = [f'"""Module {number}: {draw.choice(_WORDS)} of {draw.choice(_WORDS)}."""\n']
    for at in range(functions):
        first, second, third, fourth = draw.sample(_WORDS, 4)
        name = f"{first}_{third}_{number}_{at}"
        parts.append(
            _FUNCTION.format(
                name=name,
                first=first,
                second=second,
                third=third,
                fourth=fourth,
                number=number * functions + at,
            )
        )
    return "".join(parts)


def edit_share(folder: Path, *, files: int, share: float, seed: int = 2) -> int:
    """Edits one function in a share of the files; returns how many files it edited."""
    chosen = random.Random(seed).sample(range(files), max(1, int(files * share)))
    for number in chosen:
        path = file_path(folder, number)
        text = path.read_text("utf-8")
        path.write_text(text.replace("if not ", "if None is ", 1), encoding="utf-8")
    return len(chosen)
