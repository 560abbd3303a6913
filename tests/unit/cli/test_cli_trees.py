"""A path means one tree, and a tree one workspace."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from services.cli.trees import check_workspace_id, resolve_tree, tree_path
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_lies_under_the_whole_machine_by_default(tmp_path: Path) -> None:
    tree = resolve_tree(str(tmp_path), "local=/")

    assert tree.root == "roots/local"
    assert tree.directory == str(tmp_path.resolve()).lstrip("/")
    assert tree_path(tree.root, tree.directory, "local=/") == tmp_path.resolve()


def test_the_innermost_root_is_taken(tmp_path: Path) -> None:
    (tmp_path / "inner" / "project").mkdir(parents=True)

    tree = resolve_tree(str(tmp_path / "inner" / "project"), f"a={tmp_path},b={tmp_path}/inner")

    assert (tree.root, tree.directory) == ("roots/b", "project")


def test_a_root_itself_is_a_tree(tmp_path: Path) -> None:
    assert resolve_tree(str(tmp_path), f"a={tmp_path}").directory == ""


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_folder_is_a_wrong_argument(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StartError) as refusal:
        resolve_tree(str(tmp_path / name), "local=/")

    assert refusal.value.code == ExitCode.USAGE
    assert "\n" not in refusal.value.message


def test_a_folder_under_no_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()

    with pytest.raises(StartError, match="LODESTONE_IO_ROOTS"):
        resolve_tree(str(tmp_path), f"local={tmp_path}/root")


@pytest.mark.parametrize("name", ["Flask 3.1", "x", "...", "ünïcode", "a" * 200, "日本"])
def test_every_folder_has_a_valid_workspace_id(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()

    identifier = resolve_tree(str(folder), "local=/").workspace_id

    assert re.fullmatch("[a-z0-9-]{4,63}", identifier)
    assert check_workspace_id(identifier) == identifier


def test_folders_of_one_name_are_two_workspaces(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "src").mkdir(parents=True)

    first, second = (resolve_tree(str(tmp_path / each / "src"), "local=/") for each in ("a", "b"))

    assert first.workspace_id != second.workspace_id


def test_a_link_is_the_workspace_of_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    through_link = resolve_tree(str(tmp_path / "link"), "local=/")

    assert through_link == resolve_tree(str(tmp_path / "real"), "local=/")


@pytest.mark.parametrize("name", ["abc", "Has Capitals", "x" * 64, "under_score"])
def test_a_wrong_workspace_name_is_told(name: str) -> None:
    with pytest.raises(StartError, match="no workspace name"):
        check_workspace_id(name)
