"""`lodestone check`: holds an index to the files and to itself."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
import grpc

from lodestone.indexer.v1.maintenance_service_pb2 import CheckIndexRequest
from lodestone.indexer.v1.maintenance_service_pb2_grpc import MaintenanceServiceStub
from services.cli.listing import connect
from services.cli.rpc_errors import explain
from services.cli.terminal import harmless
from services.cli.trees import check_workspace_id
from services.runtime.exits import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lodestone.indexer.v1.maintenance_service_pb2 import Disagreement
    from services.cli.indexer import Indexer

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What the command line asks of `check`."""

    root: Path
    """Data folder."""
    workspace: str
    sample: float
    mark: bool
    repair: bool
    as_json: bool


def run_check(options: CheckOptions) -> ExitCode:
    """Checks and prints what disagrees; fails when something does and no repair is queued."""
    parent = f"workspaces/{check_workspace_id(options.workspace)}"
    indexer, _ = connect(options.root)
    try:
        checked, found, left_out = _check(indexer, parent, options)
        run = ""
        if found and options.repair:
            run = indexer.create_repair(parent).name
    finally:
        indexer.close()
    if options.as_json:
        rows = [
            {
                "kind": d.kind,
                "path": d.path,
                "name": d.qualified_name,
                "nodes": d.nodes,
                "model": d.model,
                "fingerprint": d.fingerprint,
            }
            for d in found
        ]
        told = {"checked": checked, "disagreements": rows, "left_out": left_out, "run": run}
        click.echo(json.dumps(told))
    else:
        _print(checked, found, run, left_out)
    return ExitCode.FAILED if found and not run else ExitCode.OK


def _check(
    indexer: Indexer, parent: str, options: CheckOptions
) -> tuple[int, list[Disagreement], list[str]]:
    request = CheckIndexRequest(parent=parent, sample_ratio=options.sample, mark=options.mark)
    checked = 0
    found: list[Disagreement] = []
    left_out: list[str] = []
    try:
        for response in MaintenanceServiceStub(indexer.channel).CheckIndex(request):
            checked = response.checked
            found.extend(response.disagreements)
            left_out.extend(response.left_out)
    except grpc.RpcError as error:
        raise explain(error) from None
    return checked, found, left_out


def _print(checked: int, found: list[Disagreement], run: str, left_out: Sequence[str] = ()) -> None:
    counts: Counter[str] = Counter()
    for item in found:
        counts[item.kind] += max(1, item.nodes)
    click.echo(f"{checked:,} rows looked at, {counts.total():,} disagree.")
    for kind, count in counts.most_common():
        click.secho(f"  {count:,} {kind.replace('_', ' ')}", fg="yellow")
    for item in found[:_SHOWN]:
        of = f"with {item.model}" if item.model else ""
        click.echo(harmless(f"    {item.path} {item.qualified_name} {of}".rstrip()))
    for model in left_out:
        click.secho(f"Vectors of {model} were not made again: it is not served.", fg="yellow")
    if run:
        click.echo(f"{run} redoes them.")
