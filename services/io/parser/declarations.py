"""Tells what a statement declares, by the rules of its language."""

from __future__ import annotations

import re
from enum import Enum
from itertools import dropwhile, islice, takewhile
from typing import TYPE_CHECKING, NamedTuple

from services.io.model import Span

if TYPE_CHECKING:
    from tree_sitter import Node as Syntax

    from services.io.parser.languages import LanguageRules

_MAX_WRAPPERS = 8
_MAX_NAME_CHARACTERS = 200
_IDENTIFIERS = frozenset({
    "identifier", "simple_identifier", "type_identifier", "property_identifier",
    "field_identifier", "constant", "name", "word", "qualified_identifier", "destructor_name",
    "operator_name", "operator_cast", "package_identifier",
})  # fmt: skip
_SCOPES = re.compile(r"\s*(?:::|->|#|\\)\s*")
_DOTS = re.compile(r"\s*\.\s*")
_ARGUMENTS = re.compile(r"\s*(?:<[^<>]*>|\[[^\[\]]*\]|\([^()]*\))")
_ARROWS = re.compile(r"[-=]>")
_OPEN_ARGUMENTS = re.compile(r"\s*[<\[(].*", re.DOTALL)
_MAX_NESTED_ARGUMENTS = 8
"""Arguments within arguments that are taken out; what is left begins at the first bracket."""
_OPERATOR = re.compile(r"(?:(?<=::)|^)\s*operator\b(.*)", re.DOTALL)
_PLAIN_NAME = re.compile(r"[\w.$@:]+")
_UNNAMED = {
    "companion_object": "Companion",
    "secondary_constructor": "constructor",
    "deinit_declaration": "deinit",
    "subscript_declaration": "subscript",
    "indexer_declaration": "this",
    "init_declaration": "init",
}
_OPERATORS = frozenset({"operator_declaration", "conversion_operator_declaration"})
_DESTRUCTOR = "destructor_declaration"


class Shape(Enum):
    """What a declaration is made of."""

    FUNCTION = "function"
    CLASS = "class"
    CONTAINER = "container"


class Declaration(NamedTuple):
    """A statement that declares something; `outer` is the whole of it, `inner` has the body."""

    shape: Shape
    name: str
    outer: Syntax
    inner: Syntax
    body: Syntax | None
    is_method: bool = False

    def signature(self, data: bytes) -> Span:
        """Returns the range before the body, or all of it when there is none."""
        start = self.outer.start_byte
        end = self.outer.end_byte if self.body is None else self.body.start_byte
        return Span(start, start + len(data[start:end].rstrip()))


class Declarations:
    """The rules of one language, applied."""

    def __init__(self, rules: LanguageRules) -> None:
        self.rules = rules

    def of(self, node: Syntax) -> Declaration | None:
        """Returns what a statement declares, None when it is a plain statement."""
        rules, inner, name = self.rules, node, ""
        for _ in range(_MAX_WRAPPERS):
            kind = inner.type
            if kind in rules.functions:
                return self._function(node, inner, name)
            if kind in rules.classes:
                return self._class(node, inner, name)
            if kind in rules.objects:
                return self._object(node, inner, name)
            if kind in rules.calls and not name:
                return self._callback(node, inner)
            if kind in rules.calls and (block := self._block(inner)) is not None:
                holds = any(map(self._holds_function, block.named_children))
                return Declaration(Shape.CLASS, name, node, inner, block) if holds else None
            following = self._inside(inner, kind)
            if following is None:
                return self._container(node, inner) if kind in rules.containers else None
            bound = rules.bindings.get(kind)
            if bound:
                name = name or _in_one_line(_text(inner.child_by_field_name(bound[0])))
            inner = following
        return None

    def body_of(self, node: Syntax) -> Syntax | None:
        """Returns the body of a declaration."""
        body = node.child_by_field_name("body")
        if body is None and self.rules.bodies:
            body = next((c for c in node.named_children if c.type in self.rules.bodies), None)
        return body

    def _inside(self, node: Syntax, kind: str) -> Syntax | None:
        """Returns what a wrapper, binding or call is around, None when it is not just that."""
        rules = self.rules
        if kind in rules.bindings:
            return node.child_by_field_name(rules.bindings[kind][1])
        if kind in rules.carriers:
            defined = node.child_by_field_name("type")
            is_named = defined is not None and defined.child_by_field_name("name") is not None
            return defined if is_named else None
        if kind in rules.wrappers:
            return self._wrapped(node)
        if kind in rules.calls:
            arguments = node.child_by_field_name("arguments")
            inside = arguments.named_children if arguments is not None else ()
            functions = [child for child in inside if child.type in rules.functions]
            return functions[0] if len(functions) == 1 else None
        return None

    def _callback(self, outer: Syntax, call: Syntax) -> Declaration | None:
        """Returns the function that a call calls or takes, as a container of declarations.

        Scripts hide whole files in `(function () { ... })()`; Ruby writes `private def name`, and
        `class_methods do ... end`.
        """
        block = self._block(call)
        if block is not None:
            return Declaration(Shape.CONTAINER, "", outer, block, block)
        function = self._inside(call, call.type)
        if function is None:
            function = call.child_by_field_name("function")
            if function is not None and function.type == "parenthesized_expression":
                function = self._wrapped(function)
        if function is None or function.type not in self.rules.functions:
            return None
        if self._name(function) and call.child_by_field_name("function") is None:
            return self._function(outer, function, "")
        body = self.body_of(function)
        return None if body is None else Declaration(Shape.CONTAINER, "", outer, body, body)

    def _block(self, call: Syntax) -> Syntax | None:
        """Returns the statements of the block that a call of Ruby takes."""
        block = call.child_by_field_name("block")
        return block.child_by_field_name("body") if block is not None else None

    def _wrapped(self, node: Syntax) -> Syntax | None:
        for name in ("definition", "declaration", "value"):
            found = node.child_by_field_name(name)
            if found is not None:
                return found
        ignored = self.rules.comments | self.rules.attributes
        inside = [child for child in node.named_children if child.type not in ignored]
        if node.type == "template_declaration":
            return inside[-1] if inside else None
        return inside[0] if len(inside) == 1 else None

    def _function(self, outer: Syntax, inner: Syntax, name: str) -> Declaration | None:
        named = self._name(inner) or name
        receiver = inner.child_by_field_name("receiver")
        owner = _receiver_type(receiver) if receiver is not None else ""
        full = ".".join(part for part in (owner, name or named) if part)
        if not full and outer.type == "export_statement":
            full = "default"
        if not full and not self._name(inner) and outer.type not in self.rules.functions:
            return None
        is_method = bool(owner) or "." in full
        return Declaration(Shape.FUNCTION, full, outer, inner, self.body_of(inner), is_method)

    def _class(self, outer: Syntax, inner: Syntax, name: str) -> Declaration | None:
        body = self.body_of(inner)
        if body is None and inner.type in self.rules.body_required:
            return None
        name = self._name(inner) or name
        if not name and outer.type == "export_statement":
            name = "default"
        return Declaration(Shape.CLASS, name, outer, inner, body)

    def _object(self, outer: Syntax, inner: Syntax, name: str) -> Declaration | None:
        if not any(self._holds_function(child) for child in inner.named_children):
            return None
        name = name or ("default" if outer.type == "export_statement" else "")
        return Declaration(Shape.CLASS, name, outer, inner, inner) if name else None

    def _holds_function(self, member: Syntax) -> bool:
        if member.type in self.rules.functions:
            return True
        value = member.child_by_field_name("value")
        return value is not None and value.type in self.rules.functions

    def _container(self, outer: Syntax, inner: Syntax) -> Declaration:
        body = self.body_of(inner)
        named = body is not None and inner.child_by_field_name("name") is not None
        name = _text(inner.child_by_field_name("name")) if named else ""
        return Declaration(Shape.CONTAINER, plain_name(name), outer, inner, body)

    def _name(self, node: Syntax) -> str:
        known = _UNNAMED.get(node.type)
        if known:
            return known
        if node.type in _OPERATORS:
            signature = takewhile(lambda child: child.type != "parameter_list", node.children)
            sign = dropwhile(lambda child: child.type != "operator", signature)
            return _operator_name(" ".join(map(_text, islice(sign, 1, None))))
        if node.type == _DESTRUCTOR:
            return f"~{_text(node.child_by_field_name('name'))}"
        for field in self.rules.name_fields:
            found = node.child_by_field_name(field)
            if found is not None:
                return plain_name(_text(_declared(found)))
        found = next((c for c in node.named_children if c.type in _IDENTIFIERS), None)
        return plain_name(_text(found)) if found is not None else ""


def plain_name(text: str) -> str:
    """Returns a name with `.` between its parts and without type arguments."""
    if text.isidentifier():
        return text[:_MAX_NAME_CHARACTERS]
    text = " ".join(text.split())  # else patterns look at blanks again at each of them
    operator = _OPERATOR.search(text)
    last = "" if operator is None else _operator_name(operator[1])
    bare = _without_arguments(text if operator is None else text[: operator.start()])
    path = _SCOPES.sub(".", bare if bare or last else text).strip(". \n\"'`")
    return ".".join(filter(None, (path, last)))[:_MAX_NAME_CHARACTERS]


def _in_one_line(text: str) -> str:
    """Returns a name that may be written over several lines, as a chain of members is."""
    return text if text.isidentifier() else _DOTS.sub(".", " ".join(text.split()))


def _without_arguments(text: str) -> str:
    """Returns a path without the type arguments of its parts: `Map<K, V>::at` is `Map::at`."""
    text = _ARROWS.sub("::", text)  # they close no brackets
    for _ in range(_MAX_NESTED_ARGUMENTS):
        before, text = text, _ARGUMENTS.sub("", text)
        if before == text:
            break
    return _OPEN_ARGUMENTS.sub("", text)


def _operator_name(rest: str) -> str:
    """Returns the name of an operator of C++, with `rest` behind the word `operator`."""
    symbol = " ".join(rest.split())
    if symbol[:1].isalpha():  # a conversion, to which its empty parameters belong, or `new`
        return f"operator {symbol.partition('(')[0].strip()}"
    return f"operator{symbol.replace(' ', '')}"


def assigned_name(statement: Syntax | None) -> str:
    """Returns the name that a statement assigns, as far as it is easily told."""
    node = statement
    for _ in range(3):
        if node is None:
            break
        for field in ("left", "name", "declarator", "pattern"):
            found = node.child_by_field_name(field)
            if found is not None:
                text = _text(_declared(found))
                return text if _PLAIN_NAME.fullmatch(text) else ""
        node = node.named_children[0] if node.named_child_count else None
    return ""


def _declared(node: Syntax) -> Syntax:
    """Follows the declarators of C to the name."""
    for _ in range(_MAX_WRAPPERS):
        if node.type in _IDENTIFIERS:
            return node
        below = node.child_by_field_name("declarator")
        if below is None:
            below = next((c for c in node.named_children if c.type.endswith("declarator")), None)
        if below is None:
            return node
        node = below
    return node


def _receiver_type(receiver: Syntax) -> str:
    parameter = next(iter(receiver.named_children), None)
    kind = parameter.child_by_field_name("type") if parameter is not None else None
    return plain_name(_text(kind).lstrip("*& "))


def _text(node: Syntax | None) -> str:
    raw = node.text if node is not None else None
    return (raw or b"")[: _MAX_NAME_CHARACTERS * 4].decode(errors="ignore")
