"""Typed settings from `LODESTONE_*` environment variables; a misspelt name is an error."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_core import ErrorDetails

PREFIX = "LODESTONE_"
SECTIONS = ("IO", "EMBED", "INDEXER")
"""Each service owns the names `LODESTONE_<SECTION>_*`; the others are shared."""

SHARED_NAMES = (
    "LODESTONE_DATA_DIR",
    "LODESTONE_DATABASE_URL",
    "LODESTONE_POSTGRES_USER",
    "LODESTONE_LOG_LEVEL",
    "LODESTONE_LOG_FORMAT",
    "LODESTONE_OTLP_ENDPOINT",
    "LODESTONE_START_TIMEOUT_SECONDS",
    "LODESTONE_FAILPOINTS",
    "LODESTONE_ALLOW_FAILPOINTS",
)
"""Names that no single service owns: of the command line and of every process."""

_SECRET = re.compile("URL|PASSWORD|TOKEN|SECRET|KEY")
"""Names of settings whose values are not repeated in messages."""

SettingsT = TypeVar("SettingsT", bound="ServiceSettings")


class ServiceSettings(BaseSettings):
    """What every service can be told; subclasses add their own fields and an `env_prefix`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    listen: Annotated[str, Field(max_length=200)]
    """Address of the gRPC server: `unix:/path` or `127.0.0.1:port`."""

    metrics_listen: Annotated[str, Field(max_length=200)] = ""
    """Address of `/metrics`, `host:port`; port 0 takes a free one; empty serves none."""

    drain_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Longest time that calls in flight may take after SIGTERM."""

    max_message_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 30)] = 64 << 20
    """Largest gRPC message that is sent or taken."""

    max_concurrent_calls: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Most calls that are handled at once; more are refused with RESOURCE_EXHAUSTED."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(validation_alias="LODESTONE_LOG_LEVEL")
    ] = "info"
    """Least level that is logged (`LODESTONE_LOG_LEVEL`)."""

    log_format: Annotated[
        Literal["auto", "json", "console"], Field(validation_alias="LODESTONE_LOG_FORMAT")
    ] = "auto"
    """`auto` is JSON unless the log goes to a terminal (`LODESTONE_LOG_FORMAT`)."""

    otlp_endpoint: Annotated[str, Field(validation_alias="LODESTONE_OTLP_ENDPOINT")] = ""
    """Where traces go, e.g. `http://127.0.0.1:4317`; empty sends none."""

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, address: str) -> str:
        if address.startswith("unix:"):
            if not address.removeprefix("unix:"):
                raise ValueError("a path must follow unix:")
            return address
        return _checked_host_and_port(address)

    @field_validator("metrics_listen")
    @classmethod
    def _check_metrics_listen(cls, address: str) -> str:
        return _checked_host_and_port(address) if address else address


def _checked_host_and_port(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("write 127.0.0.1:7701, or another host:port with a port up to 65535")
    if host != "localhost":
        ipaddress.ip_address(host.strip("[]"))  # raises ValueError, which says what is wrong
    return address


Names = Annotated[tuple[str, ...], NoDecode]
"""A tuple of names, written with commas in the environment."""


def load_settings(
    settings_class: type[SettingsT], environment: Mapping[str, str] | None = None
) -> SettingsT:
    """Returns the settings of one service.

    Raises:
        StartError: a name is unknown or a value breaks its rule; the message names the variable
            and what to write instead.
    """
    environment = os.environ if environment is None else environment
    section = str(settings_class.model_config["env_prefix"])
    check_names(environment, section, names_of(settings_class))
    source = EnvSettingsSource(settings_class)
    source.env_vars = {name.lower(): value for name, value in environment.items()}
    try:
        return settings_class(_build_sources=((source,), {}))
    except ValidationError as error:
        raise StartError(ExitCode.USAGE, _explain(section, error)) from None


def names_of(settings_class: type[ServiceSettings]) -> list[str]:
    """Returns the environment variables that a settings class reads."""
    prefix = str(settings_class.model_config["env_prefix"])
    return [
        str(field.validation_alias or f"{prefix}{name}".upper())
        for name, field in settings_class.model_fields.items()
    ]


def check_names(environment: Mapping[str, str], section: str, known: Iterable[str]) -> None:
    """Raises StartError for a `LODESTONE_*` name that nothing reads.

    A service knows its own section in full, and of other sections the prefix alone.
    """
    known = {*known, *SHARED_NAMES}
    others = tuple(f"{PREFIX}{name}_" for name in SECTIONS if f"{PREFIX}{name}_" != section)
    for name in sorted(environment):
        if not name.upper().startswith(PREFIX) or name in known or name.startswith(others):
            continue
        meant = _closest(name.upper(), known)
        hint = f" Did you mean {meant}?" if meant else ""
        raise StartError(ExitCode.USAGE, f"Unknown setting {name}.{hint}")


def _closest(name: str, known: Iterable[str]) -> str:
    """Returns the name that was probably meant: its section is mended first, then the rest."""
    section, _, rest = name.removeprefix(PREFIX).partition("_")
    sections = difflib.get_close_matches(section, SECTIONS, n=1, cutoff=0.7)
    mended = f"{PREFIX}{sections[0]}_{rest}" if sections else name
    close = difflib.get_close_matches(mended, list(known), n=1, cutoff=0.85)
    if close:
        return close[0]
    if mended != name:
        return mended
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), "")


def _explain(section: str, error: ValidationError) -> str:
    return "Wrong settings: " + "; ".join(
        _explain_one(section, detail) for detail in error.errors()
    )


def _explain_one(section: str, detail: ErrorDetails) -> str:
    text = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:  # a rule over several settings names them itself
        return text
    field = str(detail["loc"][0])
    name = field if field.startswith(PREFIX) else f"{section}{field}".upper()
    if detail["type"] == "missing":
        return f"{name} is not set"
    value = "" if _SECRET.search(name) else f" (it is {detail['input']!r})"
    return f"{name}: {text}{value}"
