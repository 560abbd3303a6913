"""Loads the grammars that came as wheels: one parser for each language and process."""

from __future__ import annotations

import importlib

from tree_sitter import Language, Parser, Query

from services.io.parser.languages import LANGUAGES, RULES
from services.io.parser.reference_rules import REFERENCE_RULES


class Grammars:
    """The parsers and queries of one process, made when first asked for.

    They are not to be shared between threads.
    """

    def __init__(self) -> None:
        self._languages: dict[str, Language] = {}
        self._parsers: dict[str, Parser] = {}
        self._queries: dict[str, Query] = {}

    def parser(self, language: str) -> Parser:
        """Returns the parser of a language of `LANGUAGES`."""
        found = self._parsers.get(language)
        if found is None:
            found = self._parsers[language] = Parser(self._language(language))
        return found

    def references(self, language: str) -> Query:
        """Returns the query of calls, bases and imports of a language of `REFERENCE_RULES`."""
        found = self._queries.get(language)
        if found is None:
            rules = REFERENCE_RULES[language]
            found = self._queries[language] = Query(self._language(language), rules.query)
        return found

    def warm(self) -> None:
        """Makes all parsers.

        Queries are left to the first file of their language: to compile all of them takes more of a
        process's start than everything else, and most trees hold few languages.
        """
        for rules in LANGUAGES:
            self.parser(rules.name)

    def _language(self, name: str) -> Language:
        found = self._languages.get(name)
        if found is None:
            rules = RULES[name]
            factory = getattr(importlib.import_module(rules.module), rules.factory)
            found = self._languages[name] = Language(factory())
        return found
