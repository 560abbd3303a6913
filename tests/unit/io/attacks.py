"""Files that were made to hurt a parser: by nesting, by length, by count, by their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

DEEP = 100_000
NESTED = 20_000
MANY = 100_000

NESTING: Mapping[str, str] = {
    "brackets.py": "x = " + "[" * DEEP + "]" * DEEP + "\n",
    "open.py": "(" * DEEP,
    "calls.py": "f(" * DEEP + ")" * DEEP + "\n",
    "lambdas.py": "f = " + "lambda: " * DEEP + "1\n",
    "ifs.py": "".join(" " * depth + "if a:\n" for depth in range(1500)) + " " * 1500 + "pass\n",
    "brackets.js": "x = " + "[" * DEEP + "]" * DEEP + ";",
    "functions.js": "(function () {" * NESTED + "})()" * NESTED,
    "arrows.js": "x = " + "a => " * DEEP + "1;",
    "objects.js": "x = " + "{a:" * DEEP + "1" + "}" * DEEP,
    "templates.js": "`${" * NESTED + "1" + "}`" * NESTED,
    "generics.ts": "let x: " + "A<" * DEEP + "B" + ">" * DEEP + ";",
    "elements.tsx": "x = " + "<a>" * NESTED + "</a>" * NESTED,
    "brackets.c": "int x = " + "(" * DEEP + "1" + ")" * DEEP + ";",
    "blocks.c": "void f() {" + "{" * DEEP + "}" * DEEP + "}",
    "ifdefs.c": "#if A\n" * NESTED + "int x;\n" + "#endif\n" * NESTED,
    "namespaces.cpp": "namespace a { " * NESTED + "}" * NESTED,
    "brackets.json": "[" * DEEP + "]" * DEEP,
    "brackets.go": "package p\nvar x = " + "(" * DEEP + "1" + ")" * DEEP,
    "modules.rs": "mod a { " * NESTED + "}" * NESTED,
    "classes.java": "class A { " * NESTED + "}" * NESTED,
    "namespaces.cs": "namespace A { " * NESTED + "}" * NESTED,
    "modules.rb": "module A\n" * NESTED + "end\n" * NESTED,
    "brackets.php": "<?php $x = " + "[" * DEEP + "]" * DEEP + ";",
    "shells.sh": "x=$(" * NESTED + "echo" + ")" * NESTED,
    "brackets.kt": "val x = " + "(" * DEEP + "1" + ")" * DEEP,
    "objects.scala": "object A {" * NESTED + "}" * NESTED,
    "classes.swift": "class A {" * NESTED + "}" * NESTED,
    "quotes.md": ">" * DEEP + " a\n",
    "lists.md": "".join(" " * (2 * depth) + "- a\n" for depth in range(1000)),
}
"""Deeper than any stack; each still is some nodes."""

COUNTS: Mapping[str, str] = {
    "functions.py": "def f():0\n" * MANY,
    "statements.py": "x=1;" * MANY,
    "indented.js": " " * 1_000_000 + "x=1;" * MANY + "\n",
    "decorators.py": "@d\n" * MANY + "def f(): pass\n",
    "comments.py": "# a\n" * (2 * MANY) + "x = 1\n",
    "docs.go": "package p\n" + "// a\n" * (2 * MANY) + "func F() {}\n",
    "docs.js": "/** a */\n" * MANY + "function f() {}\n",
    "attributes.rs": "#[a]\n" * MANY + "fn f() {}\n",
    "elifs.py": "if a: pass\n" + "elif a: pass\n" * (MANY // 4),
    "sums.py": "x = " + "1+" * MANY + "1\n",
    "name.py": "x" * 1_900_000 + " = 1\n",
    "function_name.py": "def " + "x" * 1_900_000 + "(): pass\n",
    "parameters.py": "def f(" + "a, " * MANY + "): pass\n",
    "line.py": "x = '" + "a " * 900_000 + "'\n",
    "line.txt": "a " * 900_000,
    "symbols.txt": "{" * 500_000,
    "wide.txt": "é🎉" * 100_000,
    "blank.py": "\n" * 1_900_000,
    "returns.txt": "a\r" * 500_000,
    "regex.js": "x = /" + "(a+)+" * MANY + "/;",
    "headings.md": "# a\n" * MANY,
    "paragraph.md": "a\n" * (4 * MANY) + "===\n",
    "fences.md": "```\n" * MANY,
    "spaces.md": "#" + " \t" * 900_000 + "x\n",
    "quotes.py": '"' * 1_000_001,
}
"""Up to the size limit, of what a rule of ours might take the square of."""

BOMBS: Mapping[str, str] = {
    "generics.cs": "a<" * DEEP,
    "generics.java": "a<" * DEEP,
    "casts.c": "(a)(b)*" * DEEP + "c;",
    "templates.cpp": "A<" * DEEP + "B" + ">" * DEEP + " x;",
}
"""What a grammar is ambiguous about: its parser takes gigabytes or minutes."""

BYTES: Mapping[str, tuple[bytes, str]] = {
    "nul.py": (b"x = '\0'\n", "skipped"),
    "late_nul.py": (b"x = 1\n" * 5000 + b"\0\n", "parsed"),
    "surrogate.py": (b"x = '\xed\xa0\x80'\n", "skipped"),
    "invalid.py": (b"x = 1\n" * 5000 + b"x = '\xff'\n", "skipped"),
    "cut.py": ("x = 'é".encode()[:-1], "skipped"),
    "overlong.py": (b"x = '\xc0\xaf'\n", "skipped"),
    "bom.py": (b"\xef\xbb\xbfdef f(): pass\n", "parsed"),
    "bom_alone.py": (b"\xef\xbb\xbf", "parsed"),
    "utf16.py": ("def f(): pass\n".encode("utf-16"), "skipped"),
    "utf16_be.py": ("def f(): pass\n".encode("utf-16-be"), "skipped"),
    "utf32.py": ("def f(): pass\n".encode("utf-32"), "skipped"),
    "empty.py": (b"", "parsed"),
    "blank.py": (b" \t\r\n\x0c", "parsed"),
    "tokens.py": (b"x = '<|endoftext|>'\ndef f(): return '[CLS]<s></s>[SEP]'\n", "parsed"),
    "bidi.py": ("def f():\n    return '\u202e\u2066\u200b'\n".encode(), "parsed"),
    "plane.py": ("x = '\U0010ffff\ufffe\ufeff'\n".encode(), "parsed"),
}
"""How each ends."""
