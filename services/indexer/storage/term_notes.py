"""Keeps the terms of nodes that are noted as changed, so that a search reads only new notes.

A note never changes, and whoever writes terms of a node notes it in the same transaction. So what
was read of a node with some notes stays right until there is another note of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from services.indexer.search.postings import Changes, Documents

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.indexer.search.postings import Ids


@dataclass(frozen=True, slots=True)
class NotedTerms:
    """What a node has: its length, and by term twice the count, one more for a term of its name."""

    length: int
    held: Mapping[str, int]

    @classmethod
    def of(
        cls, length: int, terms: Sequence[str], counts: Sequence[int], names: Sequence[str]
    ) -> NotedTerms:
        """Returns what a row of `node_terms` says."""
        held: dict[str, int] = {}
        for term, count in zip(terms, counts, strict=True):
            held[term] = held.get(term, 0) + 2 * count
        for term in names:
            held[term] = held.get(term, 0) | 1
        return cls(length, held)


@dataclass(frozen=True, slots=True)
class Noted:
    """The notes of a workspace, and the terms of their nodes, in one state of the database."""

    notes: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Nodes by the number of the note."""
    terms: Mapping[int, NotedTerms] = field(default_factory=dict)
    """By node, of those that are there."""
    nodes: Ids = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """All nodes of the notes, in ascending order."""

    def advanced(
        self,
        seqs: Sequence[int],
        new: Mapping[int, Sequence[int]],
        read: Mapping[int, NotedTerms | None],
    ) -> Noted:
        """Returns the next state; this one stays as it is.

        Args:
            seqs: numbers of all notes that are there now.
            new: those of them that this state does not have, with their nodes.
            read: what is there of these nodes now, None of one that is gone.
        """
        if not new and len(seqs) == len(self.notes):
            return self
        notes = {seq: new[seq] if seq in new else self.notes[seq] for seq in seqs}
        nodes = sorted(set(chain.from_iterable(notes.values())))
        there = {node: read[node] if node in read else self.terms.get(node) for node in nodes}
        return Noted(
            notes,
            {node: terms for node, terms in there.items() if terms is not None},
            np.array(nodes, dtype=np.int64),
        )

    def changes(self, terms: Sequence[str]) -> Changes:
        """Returns what blocks are read with, for the terms of a question."""
        holding = [
            (node, noted.length, [noted.held.get(term, 0) for term in terms])
            for node, noted in self.terms.items()
            if not noted.held.keys().isdisjoint(terms)
        ]
        values = np.array([held for _, _, held in holding], dtype=np.int64)
        values = values.reshape(len(holding), len(terms))
        documents = Documents(
            np.array([node for node, _, _ in holding], dtype=np.int64),
            np.array([length for _, length, _ in holding], dtype=np.float64),
            values >> 1,
            (values & 1).astype(np.bool_),
        )
        return Changes(self.nodes, len(self.terms), documents)
