"""Every setting with its default, its limits and what it means, as a page of documentation."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticUndefined

from services.embed.settings import EmbedSettings
from services.indexer.settings import IndexerSettings
from services.io.settings import IoSettings
from services.runtime.settings import ServiceSettings, names_of

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PAGE = Path(__file__).parent.parent.parent / "docs" / "settings-reference.md"
_HEAD = """\
# All settings

Written by `make docs` from `services/*/settings.py`. Set by environment variables; a wrong value
or a misspelt name stops the start with a message that names it. The most used are explained in the
[README](../README.md), [settings.md](settings.md) and [security.md](security.md).
"""
_SECTIONS: tuple[tuple[str, type[ServiceSettings]], ...] = (
    ("io", IoSettings),
    ("embed", EmbedSettings),
    ("indexer", IndexerSettings),
)
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """Returns the page's text."""
    parts = [_HEAD]
    for service, settings in _SECTIONS:
        parts.append(
            f"\n## {service}\n\n| variable | default | limits | what |\n|---|---|---|---|\n"
        )
        texts = _docstrings(settings)
        fields = settings.model_fields.items()
        for variable, (name, field) in sorted(
            zip(names_of(settings), fields, strict=True), key=lambda pair: pair[0]
        ):
            cells = (f"`{variable}`", _default(field), _limits(field), texts[name])
            parts.append(f"| {' | '.join(cells)} |\n")
    return "".join(parts)


def _docstrings(settings: type[ServiceSettings]) -> dict[str, str]:
    """Returns the text below each field, as one line; a field without one is a KeyError later."""
    found: dict[str, str] = {}
    for each in reversed(settings.__mro__):
        if not issubclass(each, ServiceSettings):
            continue
        (node,) = ast.parse(inspect.getsource(each)).body
        assert isinstance(node, ast.ClassDef)
        for field, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                assert isinstance(field.target, ast.Name)
                text = ast.literal_eval(below.value)
                found[field.target.id] = " ".join(text.split()).replace("|", "\\|")
    return found


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "by the machine"
    if field.default is PydanticUndefined:
        return "must be set"
    return f"`{_shown(field.default)}`" if _shown(field.default) else "none"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _limits(field: FieldInfo) -> str:
    limits = []
    for rule in field.metadata:
        limits += [
            f"{sign} {getattr(rule, name):,}"
            for name, sign in _SIGNS.items()
            if getattr(rule, name, None) is not None
        ]
    allowed = getattr(field.annotation, "__args__", ())
    if allowed and all(isinstance(each, str) for each in allowed):
        limits.append(", ".join(f"`{each}`" for each in allowed))
    return ", ".join(limits)
