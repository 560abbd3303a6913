"""Several networks behind one backend and one encoder: each purpose takes its route."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from services.embed.backends.protocol import AlwaysUp, BackendInfo, LoadedModel
from services.embed.fingerprint import digest_of_json
from services.embed.model import ModelIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.embed.backends.protocol import Backend, TextEncoder
    from services.embed.model import EncodedText, TokenIds, Truncation, Vectors
    from services.runtime.errors import LodestoneError


def routed(models: Mapping[str, LoadedModel]) -> LoadedModel:
    """Returns models of one folder as one; they agree in all but identity and encoder."""
    return LoadedModel(
        RoutedBackend({route: model.backend for route, model in models.items()}),
        RoutedEncoder({route: model.encoder for route, model in models.items()}),
    )


class RoutedBackend(AlwaysUp):
    """Hands each batch to the backend of its route."""

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self._backends = dict(backends)
        first = next(iter(self._backends.values())).info
        identities = {route: backend.info.identity for route, backend in backends.items()}
        self._info = replace(first, routes=tuple(backends), identity=_identity(identities))

    @property
    def info(self) -> BackendInfo:
        """What this backend is."""
        graphs = sum(backend.info.graphs for backend in self._backends.values())
        return replace(self._info, graphs=graphs)

    def infer(self, batch: Sequence[TokenIds], route: str = "") -> Vectors:
        """Returns one row per text, by the network of a route."""
        return self._backends[route].infer(batch, route)

    def close(self) -> None:
        """Releases all networks."""
        for backend in self._backends.values():
            backend.close()


class RoutedEncoder:
    """Encodes texts by the encoder of their route."""

    def __init__(self, encoders: Mapping[str, TextEncoder]) -> None:
        self._encoders = dict(encoders)

    @property
    def max_tokens(self) -> int:
        """Most tokens that every route reads of one text."""
        return min(encoder.max_tokens for encoder in self._encoders.values())

    def encode(
        self, texts: Sequence[str], truncation: Truncation, route: str = "", prompt: str = ""
    ) -> list[EncodedText | LodestoneError]:
        """Returns one outcome per text, in order, cut to what its route reads."""
        return self._encoders[route].encode(texts, truncation, route, prompt)


def _identity(identities: Mapping[str, ModelIdentity]) -> ModelIdentity:
    """Returns the identity of all routes together; the shortest is what every text may have."""
    first = next(iter(identities.values()))
    facts = {route: asdict(identity) for route, identity in identities.items()}
    return ModelIdentity(
        weights=first.weights,
        tokenizer=digest_of_json({route: one.tokenizer for route, one in identities.items()}),
        pipeline={**first.pipeline, "routes": digest_of_json(facts)},
        prompts=first.prompts,
        max_tokens=min(identity.max_tokens for identity in identities.values()),
    )
