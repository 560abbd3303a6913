"""Answers as text for a language model: short, cited, and of a bounded length."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from services.client import Freshness
from services.runtime.lines import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.client import Context, FileLines, Hit, Run, SearchPage, Status

MOST_CHARACTERS = 40_000
"""Longest text of a search or of lines; a context is bounded by its tokens."""

_HIT_LINES = 40
_HIT_CHARACTERS = 3000
_FENCES = re.compile("`{3,}")
_LOST = {
    Freshness.CHANGED: "its file changed since it was indexed: call `index`, or `read` the lines",
    Freshness.GONE: "its file is gone since it was indexed: call `index`",
}


def search_text(page: SearchPage, workspaces: Sequence[str]) -> str:
    """Returns hits, best first; of several workspaces each tells its own."""
    searched = ", ".join(workspaces)
    if not page.hits:
        return (
            f"Nothing was found in {searched}. Ask in other words, or with fewer filters; "
            "`status` tells what is indexed."
        )
    parts = [f"{len(page.hits)} hits in {searched}, best first."]
    left = MOST_CHARACTERS - 200 - len(parts[0])
    for number, hit in enumerate(page.hits, 1):
        part = _hit_text(number, hit, with_workspace=len(workspaces) > 1)
        left -= len(part) + 2
        if left < 0:
            shown = number - 1
            parts.append(
                f"{len(page.hits) - shown} more hits are left out: ask with a lower limit."
            )
            break
        parts.append(part)
    return "\n\n".join(parts)


def _hit_text(number: int, hit: Hit, *, with_workspace: bool) -> str:
    workspace = f"[{hit.workspace.removeprefix('workspaces/')}] " if with_workspace else ""
    name = f"  {one_line(hit.name)}" if hit.name else ""
    path = one_line(hit.path)
    head = f"{number}. {workspace}{path}:{hit.start_line}-{hit.end_line}{name}  ({hit.kind})"
    if not hit.text:
        return f"{head}\n{_LOST.get(hit.freshness, 'its text cannot be read')}."
    lines = hit.text[:_HIT_CHARACTERS].split("\n")
    shown = lines[:_HIT_LINES]
    cut = len(shown) < len(lines) or len(hit.text) > _HIT_CHARACTERS
    rest = ""
    if cut:
        rest = f"\n(cut; `read` {path} lines {hit.start_line} to {hit.end_line} for all)"
    return f"{head}\n{_fenced(chr(10).join(shown), hit.language)}{rest}"


def context_text(context: Context) -> str:
    """Returns a context with what was left out of it."""
    left_out = [
        f"{count} {what}"
        for count, what in (
            (context.stale, "whose file changed since it was indexed"),
            (context.over_budget, "for want of room"),
        )
        if count
    ]
    note = f"\n\n(Left out: {', '.join(left_out)}.)" if left_out else ""
    if not context.pieces:
        return f"Nothing fits into the budget, or nothing was found.{note}"
    return f"{context.text}{note}"


def lines_text(lines: FileLines) -> str:
    """Returns lines of a file, numbered."""
    path = one_line(lines.path)
    where = f"{path}:{lines.start_line}-{lines.end_line} of {lines.line_count} lines"
    if lines.end_line < lines.start_line:
        return f"{path} has no such lines, or one that is too long; it has {lines.line_count}."
    state = "as it was indexed"
    if lines.freshness is Freshness.CHANGED:
        state = "written since it was indexed: places that `search` told may have moved"
    numbered: list[str] = []
    left = MOST_CHARACTERS - 500
    for number, line in enumerate(lines.text.removesuffix("\n").split("\n"), lines.start_line):
        left -= len(line) + 8
        if left < 0 and not numbered:
            numbered.append(f"{number:>6} {line[:left]}")
            numbered.append(
                f"(cut: line {number} has {len(line):,} characters; `read` from line "
                f"{number + 1} on for what follows)"
            )
            break
        if left < 0:
            numbered.append(f"(cut; `read` from line {number} on for more)")
            break
        numbered.append(f"{number:>6} {line}")
    body = "\n".join(numbered)
    return f"{where}; the file is {state}.\n{_fenced(body, lines.language)}"


def status_text(status: Status, folder: str) -> str:
    """Returns what is indexed of a workspace, and of when."""
    waiting = f"{status.nodes_pending:,} pending, {status.nodes_failed:,} failed"
    parts = [
        f"{status.workspace.name}  folder {folder or 'not known here'}",
        f"  {status.files:,} files; {status.nodes_embedded:,} pieces searchable, {waiting}",
    ]
    if status.last_run is not None:
        parts.append(f"  last run {status.last_run.state} {_ago(status.last_run)}")
    elif status.current_run is None:
        parts.append("  never indexed: call `index`")
    if status.current_run is not None:
        parts.append(f"  now: {run_text(status.current_run)}")
    return "\n".join(parts)


def run_text(run: Run) -> str:
    """Returns where a run is."""
    state = run.state.replace("_", " ")
    text = (
        f"run {state}: {run.nodes_embedded + run.nodes_reused:,} of {run.nodes_total:,} pieces done"
    )
    if run.nodes_failed or run.files_failed:
        text += f", {run.nodes_failed:,} pieces and {run.files_failed:,} files failed"
    return f"{text}. {run.error}".rstrip(". ") + "."


def workspaces_text(statuses: Sequence[str]) -> str:
    """Returns the status of several workspaces, as many as there is room for."""
    text = "\n".join(statuses)
    if len(text) <= MOST_CHARACTERS:
        return text
    return text[:MOST_CHARACTERS].rpartition("\n")[0] + "\n(more are left out: name a folder)"


def _ago(run: Run) -> str:
    if run.finished_at is None:
        return ""
    seconds = max(0, int((datetime.now(UTC) - run.finished_at).total_seconds()))
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} seconds ago"


def _fenced(text: str, language: str) -> str:
    fence = "`" * max([3, *(len(run) + 1 for run in _FENCES.findall(text))])
    return f"{fence}{'' if language == 'text' else language}\n{text}\n{fence}"
