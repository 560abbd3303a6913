"""Walks a syntax tree: one mechanism for all languages, which differ in their rules alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from services.io.model import NodeKind, Span
from services.io.parser.declarations import (
    Declaration,
    Declarations,
    Shape,
    assigned_name,
    plain_name,
)
from services.io.parser.draft import Draft, merge_lines
from services.io.parser.spans import cut_piece, line_start
from services.io.parser.statements import Statement, around

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tree_sitter import Node as Syntax

    from services.io.parser.draft import NodeBuilder
    from services.io.parser.languages import LanguageRules

MAX_DEPTH = 40
"""Deepest nesting of declarations that are told apart; what lies deeper is text."""
MAX_FIELD_BYTES = 600
"""Longer statements of a class are nodes of their own, and one line of its outline."""
_MAX_CUT_DEPTH = 100
_HEAD_FIELDS = ("condition", "name", "value", "parameters")


@dataclass(slots=True)
class _Scope:
    """Where the walk is: the names around it, the parent's position plus 1, the kind of place."""

    names: tuple[str, ...] = ()
    parent: int = 0
    in_class: bool = False
    depth: int = 0


class _Member(NamedTuple):
    declaration: Declaration | None
    statement: Statement
    start: int


class Outline:
    """Makes the nodes of one file from its syntax tree."""

    def __init__(self, rules: LanguageRules, builder: NodeBuilder) -> None:
        self._rules = rules
        self._declarations = Declarations(rules)
        self._builder = builder
        self._data = builder.data
        self._run: list[Statement] = []  # since the last declaration
        self._seen_declaration = False

    def walk(self, root: Syntax) -> None:
        """Adds all nodes beneath `root`.

        Raises:
            TooManyNodesError: the file has too many.
        """
        self._visit(root, _Scope())
        self._flush(_Scope())

    def _visit(self, container: Syntax, scope: _Scope) -> None:
        """Adds the nodes of what a file, or a container in it, holds."""
        for member in self._members(container):
            declaration = member.declaration
            if declaration is None:
                self._run.append(member.statement)
            elif declaration.shape is Shape.CONTAINER:
                self._enter(declaration, scope)
            else:
                self._flush(scope)
                self._seen_declaration = True
                self._declare(declaration, member.start, scope)

    def _members(self, container: Syntax) -> Iterator[_Member]:
        """Yields statements and declarations; the latter begin at their comments, if they have."""
        rules = self._rules
        lead: list[Syntax] = []
        awaits = False  # an attribute its declaration, which may stand below comments
        heads = _heads(container) if container.type in rules.containers else ()
        for child in container.named_children:
            kind = child.type
            if kind in rules.ignored or child in heads or child.start_byte == child.end_byte:
                continue  # a grammar makes up what it misses, of no bytes
            if kind in rules.comments:
                if self._is_module_doc(child):
                    yield _Member(None, Statement.of(child), child.start_byte)
                else:
                    lead = lead if awaits or self._is_adjacent(lead, child) else []
                    lead.append(child)
                continue
            if kind in rules.attributes:
                awaits = True
                lead.append(child)
                continue
            declaration = self._declarations.of(child)
            if declaration is None or declaration.shape is Shape.CONTAINER:
                yield from self._attributes(lead)
                yield _Member(declaration, Statement.of(child), child.start_byte)
            else:
                yield _Member(declaration, Statement.of(child), self._start(declaration, lead))
            lead, awaits = [], False
        yield from self._attributes(lead)

    def _attributes(self, lead: Sequence[Syntax]) -> Iterator[_Member]:
        """Yields attributes that stand before no declaration, as statements."""
        for node in lead:
            if node.type in self._rules.attributes:
                yield _Member(None, Statement.of(node), node.start_byte)

    def _is_module_doc(self, comment: Syntax) -> bool:
        docs = self._rules.module_docs
        return bool(docs) and self._data.startswith(docs, comment.start_byte)

    def _is_adjacent(self, lead: Sequence[Syntax], node: Syntax) -> bool:
        if not lead:
            return True
        # The comments of some grammars end before their newline, of others behind it.
        gap = self._data[lead[-1].end_byte - 1 : node.start_byte]
        return gap.count(b"\n") <= 1

    def _start(self, declaration: Declaration, lead: Sequence[Syntax]) -> int:
        """Returns where a declaration begins: at the first of its attributes, or docs above it.

        Attributes belong to it whatever comments or blank lines stand between them.
        """
        rules, data = self._rules, self._data
        positions = (index for index, node in enumerate(lead) if node.type in rules.attributes)
        position = next(positions, len(lead))
        following = lead[position] if position < len(lead) else declaration.outer
        start = following.start_byte
        for node in reversed(lead[:position]):
            documents = rules.named_docs or data.startswith(rules.docs, node.start_byte)
            stands_alone = line_start(data, node.start_byte) >= 0
            if not (documents and stands_alone and self._is_adjacent([node], following)):
                break
            start, following = node.start_byte, node
        if rules.named_docs and start != declaration.outer.start_byte:
            name = declaration.name.rpartition(".")[2].encode()
            if not data[start : start + len(name) + 8].lstrip(b"/* \t\n").startswith(name):
                return declaration.outer.start_byte
        return start

    def _enter(self, declaration: Declaration, scope: _Scope) -> None:
        """Visits a container, whose declarations belong to what is around it."""
        if scope.depth >= MAX_DEPTH or not self._holds_declaration(_place(declaration)):
            self._run.append(Statement.of(declaration.outer))
            return
        if not declaration.name:
            inside = _Scope(scope.names, scope.parent, scope.in_class, scope.depth + 1)
            head, tail = around(declaration, self._rules.comments)
            self._run += head
            self._visit(_place(declaration), inside)
            self._run += tail
            return
        self._flush(scope)
        names = (*scope.names, declaration.name)
        inside = _Scope(names, scope.parent, scope.in_class, scope.depth + 1)
        self._visit(_place(declaration), inside)
        self._flush(inside)

    def _holds_declaration(self, container: Syntax) -> bool:
        """Tells whether there is a declaration inside, through containers alone."""
        waiting = [(container, 0)]
        while waiting:
            node, depth = waiting.pop()
            for child in node.named_children:
                declaration = self._declarations.of(child)
                if declaration is None:
                    continue
                if declaration.shape is not Shape.CONTAINER:
                    return True
                if depth < MAX_DEPTH:
                    waiting.append((_place(declaration), depth + 1))
        return False

    def _declare(self, declaration: Declaration, start: int, scope: _Scope) -> None:
        name = (
            ".".join((*scope.names, declaration.name))
            if declaration.name
            else ".".join(scope.names)
        )
        span = Span(start, declaration.outer.end_byte)
        if declaration.shape is Shape.FUNCTION:
            is_method = scope.in_class or declaration.is_method
            kind = NodeKind.METHOD if is_method else NodeKind.FUNCTION
            self._add_whole(Draft(kind, name, scope.parent, span), declaration)
            return
        body = declaration.body
        members = list(self._class_members(body, scope.depth)) if body is not None else []
        if scope.depth >= MAX_DEPTH or not any(self._is_node(member) for member in members):
            self._add_whole(Draft(NodeKind.CLASS, name, scope.parent, span), declaration)
            return
        self._add_class(
            declaration, members, Draft(NodeKind.CLASS, name, scope.parent, span), scope
        )

    def _class_members(self, body: Syntax, depth: int) -> Iterator[_Member]:
        """Yields the members of a class, those in containers inside it too."""
        for member in self._members(body):
            inner = member.declaration
            if (
                inner is not None
                and inner.shape is Shape.CONTAINER
                and depth < MAX_DEPTH
                and self._holds_declaration(_place(inner))
            ):
                head, tail = around(inner, self._rules.comments)
                yield from (_Member(None, part, part.span.start) for part in head)
                yield from self._class_members(_place(inner), depth + 1)
                yield from (_Member(None, part, part.span.start) for part in tail)
            else:
                yield member

    def _is_node(self, member: _Member) -> bool:
        """Tells whether a member of a class is a node of its own."""
        declaration = member.declaration
        if declaration is None or declaration.shape is Shape.CONTAINER:
            return False
        has_body = declaration.body is not None or self._rules.empty_bodies
        return declaration.shape is Shape.CLASS or has_body

    def _add_whole(self, draft: Draft, declaration: Declaration) -> None:
        tokens = self._builder.tokens(draft.span)
        if tokens <= self._builder.budget:
            self._builder.add(draft, tokens)
            return
        signature = declaration.signature(self._data) if declaration.body is not None else None
        split = Draft(draft.kind, draft.name, draft.parent, draft.span, (), signature)
        self._builder.add_split(split, self._cuts(declaration.outer))

    def _add_class(
        self, declaration: Declaration, members: Sequence[_Member], draft: Draft, scope: _Scope
    ) -> None:
        """Adds a class as its outline, then its members; what the outline has no room for too."""
        head, before = self._head(declaration, draft.span.start)
        tail, behind = self._tail(declaration, head)
        segments, tokens, left_out = self._outline(members, head, tail)
        outline = Draft(draft.kind, draft.name, draft.parent, draft.span, segments)
        parent = self._builder.add(outline, tokens)
        inside = _Scope(
            (*scope.names, declaration.name) if declaration.name else scope.names,
            parent or scope.parent,
            in_class=True,
            depth=scope.depth + 1,
        )
        self._run += before
        self._flush(inside)
        for position, member in enumerate(members):
            inner = member.declaration
            is_node = self._is_node(member)
            is_long = not is_node and member.statement.size > MAX_FIELD_BYTES
            if is_node or is_long:
                self._flush(inside)
            if is_node and inner is not None:
                self._declare(inner, member.start, inside)
            elif is_long or position in left_out:
                self._run.append(member.statement)
            if is_long:
                self._flush(inside)
        self._run += behind
        self._flush(inside)

    def _head(self, declaration: Declaration, start: int) -> tuple[Span, list[Statement]]:
        """Returns what opens a class's text, and what of it there is no room for: long comments."""
        builder, end = self._builder, declaration.signature(self._data).end
        if builder.tokens(Span(start, end)) <= builder.budget:
            return Span(start, end), []
        inner, outer = declaration.inner.start_byte, declaration.outer.start_byte
        core = Span(inner if inner < end else outer, end)  # an object is its own body
        first = cut_piece(builder.counter, *core, builder.budget)[0]
        left = (Span(start, core.start), Span(first.end, end))
        return Span(core.start, first.end), [
            Statement(span) for span in left if span.start < span.end
        ]

    def _outline(
        self, members: Sequence[_Member], head: Span, tail: Sequence[Span]
    ) -> tuple[tuple[Span, ...], float, set[int]]:
        """Returns the segments of a class's text, as many as the model reads, and its tokens.

        Last come the positions of the members that did not fit.
        """
        kept, tokens = [head], sum(map(self._builder.tokens, (head, *tail)))
        left_out: set[int] = set()
        for position, member in enumerate(members):
            inner = member.declaration
            if inner is not None and inner.shape is not Shape.CONTAINER:
                segment = inner.signature(self._data)
            else:
                segment = self._brief(member.statement)
            more = self._builder.tokens(segment)
            if tokens + more > self._builder.budget:
                left_out.add(position)
                continue
            tokens += more
            kept.append(segment)
        return merge_lines(self._data, [*kept, *tail]), tokens, left_out

    def _tail(self, declaration: Declaration, head: Span) -> tuple[list[Span], list[Statement]]:
        """Returns what is said behind the body of a class: the name of a `typedef struct`.

        Where there is no room for it, as for a table of such structs, it comes second.
        """
        body, outer = declaration.body, declaration.outer
        if body is None:
            return [], []
        behind = [
            child
            for child in outer.named_children
            if child.start_byte >= body.end_byte and child.type not in self._rules.comments
        ]
        if not behind:
            return [], []
        tail = Span(behind[0].start_byte, outer.end_byte)
        has_room = sum(map(self._builder.tokens, (head, tail))) <= self._builder.budget
        return ([tail], []) if has_room else ([], [Statement(tail)])

    def _brief(self, statement: Statement) -> Span:
        """Returns a statement of a class, of a long one its first line."""
        span, syntax = statement
        inside = syntax.named_children if syntax is not None else []
        is_text = len(inside) == 1 and inside[0].type == "string"
        if span.end - span.start <= MAX_FIELD_BYTES or is_text:
            return span
        newline = self._data.find(b"\n", span.start, span.start + MAX_FIELD_BYTES)
        return Span(span.start, newline if newline > 0 else _character_end(self._data, span.start))

    def _flush(self, scope: _Scope) -> None:
        """Adds the statements since the last declaration as one node, without the comments."""
        statements, self._run = self._run, []
        if not statements:
            return
        spans = [statement.span for statement in statements]
        syntax = [statement.syntax for statement in statements]
        is_module = not self._seen_declaration and not scope.in_class
        kind = NodeKind.MODULE if is_module else NodeKind.BLOCK
        assigned = "" if is_module else next(filter(None, map(assigned_name, syntax)), "")
        name = ".".join((*scope.names, plain_name(assigned))) if assigned else ".".join(scope.names)
        span = Span(spans[0].start, spans[-1].end)
        segments = merge_lines(self._data, spans)
        tokens = sum(map(self._builder.tokens, segments))
        if tokens <= self._builder.budget:
            self._builder.add(Draft(kind, name, scope.parent, span, segments), tokens)
            return
        cuts = [self._cuts(node) if node is not None else [] for node in syntax]
        self._builder.add_run(Draft(kind, name, scope.parent, span, tuple(spans)), cuts)

    def _cuts(self, node: Syntax) -> list[int]:
        """Returns the starts of lines that begin with a node inside `node`: it may be cut there."""
        data, least = self._data, self._builder.budget
        cuts: list[int] = []
        waiting = [(node, 0)]
        while waiting:
            parent, depth = waiting.pop()
            for child in parent.children:
                start = child.start_byte
                cut = line_start(data, start)
                if cut >= 0:
                    cuts.append(cut)
                if child.end_byte - start > least and depth < _MAX_CUT_DEPTH:
                    waiting.append((child, depth + 1))
        return cuts


def _heads(container: Syntax) -> list[Syntax]:
    """Returns the parts of a container that are no statements: its condition, its name."""
    found = map(container.child_by_field_name, _HEAD_FIELDS)
    return [node for node in found if node is not None]


def _place(container: Declaration) -> Syntax:
    """Returns what holds the statements of a container: the body of a named one, else itself."""
    return container.body if container.name and container.body is not None else container.inner


def _character_end(data: bytes, start: int) -> int:
    """Returns the end of the last whole character within the bytes that a field may have."""
    end = start + MAX_FIELD_BYTES
    while data[end] & 0xC0 == 0x80:
        end -= 1
    return end
