"""Where a remote model is, and what its provider allows."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pathlib import Path


class EndpointError(ValueError):
    """The URL cannot be used; the message says why without repeating it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model of a provider, and how this service may use it.

    `dimensions` of 0 asks for none and takes what comes; limits of 0 limit nothing. `url` is the
    API's root, e.g. `https://api.openai.com/v1`.
    """

    url: str
    model: str
    key_file: Path | None
    dimensions: int
    max_tokens: int
    document_prompt: str
    query_prompt: str
    requests_per_minute: int
    tokens_per_minute: int
    timeout_seconds: float
    deadline_seconds: float
    concurrency: int
    max_batch_texts: int
    proxy: str

    @property
    def place(self) -> str:
        """Host, port and path of the API: what names the provider, without scheme."""
        parts = urlsplit(self.url)
        return f"{parts.netloc.lower()}{parts.path.rstrip('/')}"


def checked_url(url: str) -> str:
    """Returns the URL of an API's root, without a slash at its end.

    Raises:
        EndpointError: it is none, it would send key and texts in clear over a network, or it holds
            what does not belong there.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise EndpointError("it must be https://HOST/PATH, e.g. https://api.openai.com/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise EndpointError("it holds more than host and path; a key goes into a file of its own")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise EndpointError("http is taken for this machine alone; write https")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
