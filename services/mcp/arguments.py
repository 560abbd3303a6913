"""Arguments of tools, with the descriptions that a language model reads."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MOST_HITS = 50
MOST_TOKENS = 20_000
LONGEST_WAIT_SECONDS = 600

Folder = Annotated[
    str,
    Field(
        description="Absolute path of an indexed folder, or of one inside it, to look into; or the "
        "name of a workspace. Empty: the folder that this server was started for.",
        max_length=4096,
    ),
]
OtherFolders = Annotated[
    list[str],
    Field(
        description="More indexed folders, or names of workspaces, to look into with the first.",
        max_length=20,
    ),
]
Signatures = Annotated[
    bool,
    Field(
        description="Show of each class or function what stands before its body alone: an overview "
        "that takes few tokens."
    ),
]
Query = Annotated[
    str,
    Field(
        description="What to look for: a question in words, names of functions or classes, or a "
        "piece of code.",
        min_length=1,
        max_length=4000,
        pattern=r"\S",
    ),
]
Globs = Annotated[
    list[str],
    Field(
        description="Only files of the folder whose path under it, or under its tree as hits tell "
        r"it, matches one of these globs, e.g. `src/**` or `*.py`. `\` takes a sign as it is.",
        max_length=50,
    ),
]
Languages = Annotated[
    list[str], Field(description="Only these languages, e.g. `python`.", max_length=50)
]
Kinds = Annotated[
    list[str],
    Field(
        description="Only these kinds: `function`, `method`, `class`, `module`, `block`, "
        "`section` (of a document), `window` (of other text).",
        max_length=10,
    ),
]
Symbols = Annotated[
    list[str],
    Field(description="Only what has one of these qualified names exactly.", max_length=50),
]
Limit = Annotated[int, Field(ge=1, le=MOST_HITS, description="Most hits.")]
TokenBudget = Annotated[
    int, Field(ge=100, le=MOST_TOKENS, description="Most tokens of the answer.")
]
Path = Annotated[
    str,
    Field(
        description="Path as `search` and `context` give it, under the tree of the folder.",
        min_length=1,
        max_length=4096,
    ),
]
StartLine = Annotated[int, Field(ge=1, le=(1 << 32) - 1, description="First line, from 1.")]
EndLine = Annotated[
    int,
    Field(ge=0, le=(1 << 32) - 1, description="Last line, inclusive; 0 is the end of the file."),
]
WaitSeconds = Annotated[
    int,
    Field(
        ge=0,
        le=LONGEST_WAIT_SECONDS,
        description="Longest time to wait for the end; the work goes on after it.",
    ),
]
