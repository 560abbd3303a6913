"""Which files a module's name means."""

from __future__ import annotations

import pytest

from services.indexer.graph.model import SourceFile
from services.indexer.graph.modules import (
    absolute,
    choose_files,
    choose_in_folder,
    is_elsewhere,
    module_path,
    root_of,
    stem_of,
)
from services.indexer.model import FileId

PATHS = (
    "src/shop/__init__.py",
    "src/shop/cart.py",
    "other/shop/cart.py",
    "web/sum/index.ts",
    "web/sum.ts",
    "lib/deep/store.h",
    "internal/queue/push.go",
    "pkg/http/http.go",
    "java/com/ex/Base.java",
    "crates/core/src/a/mod.rs",
    "app/Models/User.php",
)
FILES = [SourceFile(FileId(number), path) for number, path in enumerate(PATHS)]


@pytest.mark.parametrize(
    ("module", "path", "language", "expected"),
    [
        ("shop/cart", "src/shop/x.py", "python", {"src/shop/cart.py"}),
        ("shop/cart", "other/y.py", "python", {"other/shop/cart.py"}),
        ("shop/cart", "main.py", "python", {"src/shop/cart.py", "other/shop/cart.py"}),
        ("shop", "main.py", "python", {"src/shop/__init__.py"}),
        ("./cart", "src/shop/x.py", "python", {"src/shop/cart.py"}),
        (".", "src/shop/x.py", "python", {"src/shop/__init__.py"}),
        ("../cart", "src/shop/sub/x.py", "python", {"src/shop/cart.py"}),
        ("../../../cart", "src/x.py", "python", set()),
        ("elsewhere/cart", "main.py", "python", set()),
        ("./sum", "web/x.ts", "typescript", {"web/sum/index.ts", "web/sum.ts"}),
        ("./sum.ts", "web/x.ts", "typescript", {"web/sum.ts"}),
        ("store", "web/x.ts", "typescript", set()),
        ("store.h", "lib/deep/x.c", "c", {"lib/deep/store.h"}),
        ("deep/store.h", "main.c", "c", {"lib/deep/store.h"}),
        ("com/ex/Base", "java/com/ex/Job.java", "java", {"java/com/ex/Base.java"}),
        ("org/ex/Base", "java/com/ex/Job.java", "java", set()),
        ("core/a", "crates/x/src/lib.rs", "rust", set()),
        ("App/Models/User", "app/x.php", "php", {"app/Models/User.php"}),
    ],
)
def test_a_module_means_the_nearest_files_of_its_name(
    module: str, path: str, language: str, expected: set[str]
) -> None:
    assert {file.path for file in choose_files(module, path, language, FILES)} == expected


@pytest.mark.parametrize(
    ("module", "path", "expected"),
    [
        ("example.com/shop/internal/queue", "cmd/main.go", {"internal/queue/push.go"}),
        ("net/http", "cmd/main.go", set()),
        ("example.com/shop/pkg/http", "cmd/main.go", {"pkg/http/http.go"}),
    ],
)
def test_a_package_of_go_is_a_folder_whose_name_begins_outside_of_the_tree(
    module: str, path: str, expected: set[str]
) -> None:
    assert {file.path for file in choose_in_folder(module, path, "go", FILES)} == expected


def test_names_of_modules() -> None:
    assert [module_path(path) for path in PATHS[:4]] == [
        "src/shop", "src/shop/cart", "other/shop/cart", "web/sum",
    ]  # fmt: skip
    assert [stem_of(name) for name in ("a/b", "a/b.h", "b", "a/b.v3")] == ["b"] * 4
    assert root_of("shop/cart", "src/shop/cart.py") == "src"
    assert root_of("shop", "shop/__init__.py") == ""
    assert absolute("../b", "a/x.py") == "b"
    assert absolute("../../b", "a/x.py") is None
    assert is_elsewhere("react", "javascript")
    assert not is_elsewhere("./react", "javascript")
    assert not is_elsewhere("json", "python")
