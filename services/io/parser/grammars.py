"""Loads the grammars that came as wheels: one parser for each language and process."""

from __future__ import annotations

import importlib

from tree_sitter import Language, Parser

from services.io.parser.languages import LANGUAGES, RULES


class Grammars:
    """The parsers of one process, made when first asked for; not to be shared between threads."""

    def __init__(self) -> None:
        self._parsers: dict[str, Parser] = {}

    def parser(self, language: str) -> Parser:
        """Returns the parser of a language of `LANGUAGES`."""
        found = self._parsers.get(language)
        if found is None:
            rules = RULES[language]
            factory = getattr(importlib.import_module(rules.module), rules.factory)
            found = self._parsers[language] = Parser(Language(factory()))
        return found

    def warm(self) -> None:
        """Makes all parsers."""
        for rules in LANGUAGES:
            self.parser(rules.name)
