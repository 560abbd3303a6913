"""Typed settings from `LODESTONE_*` environment variables; a misspelt name is an error."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from services.runtime import addresses
from services.runtime.exits import ExitCode, StartError
from services.runtime.span_files import DEFAULT_BYTES, TRACES_FOLDER, SpanFiles
from services.runtime.tls_files import TlsFiles

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
    TRACES_FOLDER,
    "LODESTONE_TRACES_BYTES",
    "LODESTONE_START_TIMEOUT_SECONDS",
    "LODESTONE_FAILPOINTS",
    "LODESTONE_ALLOW_FAILPOINTS",
    "LODESTONE_TLS_CERT_FILE",
    "LODESTONE_TLS_KEY_FILE",
    "LODESTONE_TLS_CA_FILE",
    "LODESTONE_TLS_REQUIRE_CLIENT_CERT",
    "LODESTONE_ACCEPTED_TOKENS_FILE",
    "LODESTONE_TOKEN_FILE",
)
"""Names that no single service owns: of the command line and of every process."""

_SECRET = re.compile("URL|PASSWORD|TOKEN|SECRET|KEY")
"""Names of settings whose values are not repeated in messages."""

SettingsT = TypeVar("SettingsT", bound="ServiceSettings")


class ServiceSettings(BaseSettings):
    """What every service can be told; subclasses add their own fields and an `env_prefix`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    listen: Annotated[str, Field(max_length=200)]
    """Address of the gRPC server: `unix:/path` or `127.0.0.1:port`."""

    metrics_listen: Annotated[str, Field(max_length=200)] = ""
    """Address of `/metrics`, `host:port`; port 0 takes a free one; empty serves none."""

    health_listen: Annotated[str, Field(max_length=200)] = ""
    """Address, `host:port`, that answers health checks without TLS and tokens, and nothing else:
    for probes that have neither; empty serves none."""

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

    traces_folder: Annotated[str, Field(validation_alias=TRACES_FOLDER)] = ""
    """Folder of files of finished spans, which `lodestone trace` reads; empty writes none. The
    command line sets it to a folder in the data folder."""

    traces_bytes: Annotated[
        int, Field(ge=4 << 20, le=1 << 40, validation_alias="LODESTONE_TRACES_BYTES")
    ] = DEFAULT_BYTES
    """Most bytes that the spans of each service have there; the oldest are removed
    (`LODESTONE_TRACES_BYTES`)."""

    tls_cert_file: Annotated[Path | None, Field(validation_alias="LODESTONE_TLS_CERT_FILE")] = None
    """Certificate of this service, PEM, with those between it and the root
    (`LODESTONE_TLS_CERT_FILE`)."""

    tls_key_file: Annotated[Path | None, Field(validation_alias="LODESTONE_TLS_KEY_FILE")] = None
    """Its private key, PEM (`LODESTONE_TLS_KEY_FILE`)."""

    tls_ca_file: Annotated[Path | None, Field(validation_alias="LODESTONE_TLS_CA_FILE")] = None
    """Certificates of those who sign the other side's; set, calls to other services use TLS
    (`LODESTONE_TLS_CA_FILE`)."""

    tls_require_client_cert: Annotated[
        bool, Field(validation_alias="LODESTONE_TLS_REQUIRE_CLIENT_CERT")
    ] = False
    """Whether only clients with a certificate that `LODESTONE_TLS_CA_FILE` signed are let in
    (`LODESTONE_TLS_REQUIRE_CLIENT_CERT`)."""

    accepted_tokens_file: Annotated[
        Path | None, Field(validation_alias="LODESTONE_ACCEPTED_TOKENS_FILE")
    ] = None
    """Bearer tokens that are accepted; set, every call needs one
    (`LODESTONE_ACCEPTED_TOKENS_FILE`)."""

    token_file: Annotated[Path | None, Field(validation_alias="LODESTONE_TOKEN_FILE")] = None
    """The bearer token that this process shows to other services (`LODESTONE_TOKEN_FILE`)."""

    def span_files(self, name: str) -> SpanFiles | None:
        """Returns the files that this process's spans go into, if there are any."""
        if not self.traces_folder:
            return None
        return SpanFiles(Path(self.traces_folder), name, self.traces_bytes)

    @property
    def tls(self) -> TlsFiles:
        """The TLS files."""
        return TlsFiles(
            self.tls_cert_file, self.tls_key_file, self.tls_ca_file, self.tls_require_client_cert
        )

    def refuse_unguarded(self) -> None:
        """Raises StartError when other machines can reach an address that lacks what guards it."""
        prefix = str(self.model_config["env_prefix"])
        lacks = [] if self.tls.serves else ["LODESTONE_TLS_CERT_FILE", "LODESTONE_TLS_KEY_FILE"]
        if self.metrics_listen:
            addresses.refuse_public(self.metrics_listen, f"{prefix}METRICS_LISTEN", lacks=lacks)
        if self.accepted_tokens_file is None:
            lacks = [*lacks, "LODESTONE_ACCEPTED_TOKENS_FILE"]
        addresses.refuse_public(self.listen, f"{prefix}LISTEN", lacks=lacks)

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError(
                "LODESTONE_TLS_CERT_FILE and LODESTONE_TLS_KEY_FILE: set both or neither"
            )
        if self.tls_require_client_cert and not (self.tls_cert_file and self.tls_ca_file):
            raise ValueError(
                "LODESTONE_TLS_REQUIRE_CLIENT_CERT needs LODESTONE_TLS_CERT_FILE, "
                "LODESTONE_TLS_KEY_FILE and LODESTONE_TLS_CA_FILE"
            )
        return self

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, address: str) -> str:
        if address.startswith("unix:"):
            if not address.removeprefix("unix:"):
                raise ValueError("a path must follow unix:")
            return address
        return _checked_host_and_port(address)

    @field_validator("metrics_listen", "health_listen")
    @classmethod
    def _check_host_and_port(cls, address: str) -> str:
        return _checked_host_and_port(address) if address else address


def _checked_host_and_port(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("write 127.0.0.1:7701, or another host:port with a port up to 65535")
    if host != "localhost":
        ipaddress.ip_address(host.strip("[]"))  # raises ValueError, which says what is wrong
    return address


def _parts(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


ItemT = TypeVar("ItemT")
Listed = Annotated[tuple[ItemT, ...], NoDecode, BeforeValidator(_parts)]
"""A tuple, written with commas in the environment; blanks around a part do not count."""
Names = Listed[str]
"""A tuple of names."""


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
