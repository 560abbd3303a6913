"""Runs a model of somebody else, behind an embeddings API of OpenAI's form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from services.embed.backends.protocol import AlwaysUp, BackendInfo, LoadedModel
from services.embed.backends.remote.abandoning import AbandonableCalls
from services.embed.backends.remote.circuit import Circuit
from services.embed.backends.remote.client import EmbeddingsClient
from services.embed.backends.remote.key_file import KeyFile, KeyFileError
from services.embed.backends.remote.provider import FAILURES_TO_OPEN, Provider, TextsAtFaultError
from services.embed.backends.remote.rate_limit import BURST_SHARE
from services.embed.backends.remote.texts import SCHEME, Utf8Encoder, text_of
from services.embed.errors import BadVectorError, RemoteModelUnavailableError
from services.embed.fingerprint import digest_of_json
from services.embed.model import ModelIdentity, Precision, Prompts
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.backends.remote.endpoint import Endpoint
    from services.embed.model import TokenIds, Vectors

_TOKEN_BUDGET = 32_768
_OPEN_SECONDS = 15.0
_FIRST_TEXT = "def first(): pass"


def load_remote(
    endpoint: Endpoint,
    *,
    token_budget: int,
    max_text_chars: int,
    open_seconds: float = _OPEN_SECONDS,
) -> LoadedModel:
    """Returns the model, ready to run. Blocks for one request when its size is not set.

    With a size set nothing is asked: a provider that is down keeps no service from starting.

    Raises:
        StartError: the key cannot be used, or the size has to be asked for and the provider does
            not tell.
    """
    _check_key(endpoint)
    client = EmbeddingsClient(endpoint)
    circuit = Circuit(failures_to_open=FAILURES_TO_OPEN, open_seconds=open_seconds)
    provider = Provider(client, endpoint, circuit=circuit)
    dimensions = endpoint.dimensions or _asked_dimensions(provider)
    client.dimensions = dimensions
    backend = RemoteBackend(provider, _info_of(endpoint, dimensions, token_budget))
    return LoadedModel(
        backend, Utf8Encoder(max_tokens=endpoint.max_tokens, max_text_chars=max_text_chars)
    )


class RemoteBackend(AlwaysUp):
    """Sends each batch as one request; several threads do so at once."""

    def __init__(self, provider: Provider, info: BackendInfo) -> None:
        self._provider = provider
        self._calls = AbandonableCalls()
        self._info = info

    @property
    def info(self) -> BackendInfo:
        """What this backend is."""
        return self._info

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        """Returns one row per text, of length one; a row that is no vector is NaN.

        Raises:
            RemoteModelUnavailableError: the provider does not answer, whatever the texts.
            BadVectorError: it does not embed this one text.
            TextsAtFaultError: it does not embed these texts together.
            EngineDownError: `stop` was called.
        """
        return self._calls.run(lambda: self._infer_all(batch))

    def stop(self) -> None:
        """Lets go whoever waits for the provider, for its limits or for the next try."""
        self._calls.stop()
        self._provider.stop()

    def close(self) -> None:
        """Closes connections."""
        self._provider.close()

    def _infer_all(self, batch: Sequence[TokenIds]) -> Vectors:
        size = self._info.max_texts
        parts = [batch[at : at + size] for at in range(0, len(batch), size)]
        return np.concatenate([self._infer(part) for part in parts])

    def _infer(self, batch: Sequence[TokenIds]) -> Vectors:
        try:
            answer = self._provider.embed(
                [text_of(ids) for ids in batch], tokens=sum(map(len, batch))
            )
        except TextsAtFaultError as error:
            if len(batch) > 1:
                raise
            raise BadVectorError(
                f"The provider of the model does not embed this text ({error})."
            ) from None
        return answer.rows


def _check_key(endpoint: Endpoint) -> None:
    if endpoint.key_file is None:
        return
    try:
        KeyFile(endpoint.key_file).read()
    except KeyFileError as error:
        raise StartError(
            ExitCode.MODEL, f"LODESTONE_EMBED_REMOTE_KEY_FILE cannot be used: {error}."
        ) from None


def _asked_dimensions(provider: Provider) -> int:
    try:
        answer = provider.embed([_FIRST_TEXT], tokens=len(_FIRST_TEXT))
    except (RemoteModelUnavailableError, TextsAtFaultError) as error:
        provider.close()
        raise StartError(
            ExitCode.MODEL,
            f"The remote model does not tell the length of its vectors ({error}). Check "
            "LODESTONE_EMBED_REMOTE_URL and _KEY_FILE, or set _REMOTE_DIMENSIONS to start without.",
        ) from None
    return int(answer.rows.shape[1])


def _info_of(endpoint: Endpoint, dimensions: int, token_budget: int) -> BackendInfo:
    model = {"provider": endpoint.place, "model": endpoint.model, "dimensions": dimensions}
    identity = ModelIdentity(
        weights=digest_of_json(model),
        tokenizer=SCHEME,
        pipeline={**model, "normalized": True},
        prompts=Prompts(document=endpoint.document_prompt, query=endpoint.query_prompt),
        max_tokens=endpoint.max_tokens,
    )
    return BackendInfo(
        name="remote",
        precision=Precision.FLOAT32,
        dimensions=dimensions,
        concurrency=endpoint.concurrency,
        token_budget=token_budget or _budget(endpoint.tokens_per_minute),
        identity=identity,
        device="",
        padded=False,
        max_texts=endpoint.max_batch_texts,
    )


def _budget(tokens_per_minute: int) -> int:
    """Returns the tokens of a batch: no more than the limit lets go at once."""
    if not tokens_per_minute:
        return _TOKEN_BUDGET
    return max(1, min(_TOKEN_BUDGET, int(tokens_per_minute * BURST_SHARE)))
