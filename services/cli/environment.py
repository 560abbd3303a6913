"""Settings of the processes: defaults for one machine, and whatever the user set instead."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from services.cli.state import SERVICES
from services.runtime.exits import ExitCode, StartError
from services.runtime.span_files import TRACES_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from services.cli.folder import DataFolder
    from services.cli.sockets import RunFolder

PREFIX = "LODESTONE_"
DATABASE_URL = "LODESTONE_DATABASE_URL"
EMBED_MODEL = "LODESTONE_EMBED_MODEL"
IO_ROOTS = "LODESTONE_IO_ROOTS"
DEFAULT_ROOTS = "local=/"
_OF_THE_COMMAND = (
    "LODESTONE_DATA_DIR",
    "LODESTONE_POSTGRES_USER",
    "LODESTONE_START_TIMEOUT_SECONDS",
)
_OF_ALL = (
    "LODESTONE_LOG_LEVEL",
    "LODESTONE_LOG_FORMAT",
    "LODESTONE_OTLP_ENDPOINT",
    TRACES_FOLDER,
    "LODESTONE_TRACES_BYTES",
    "LODESTONE_ACCEPTED_TOKENS_FILE",
    "LODESTONE_TOKEN_FILE",
    "LODESTONE_TLS_CERT_FILE",
    "LODESTONE_TLS_KEY_FILE",
    "LODESTONE_TLS_CA_FILE",
    "LODESTONE_TLS_REQUIRE_CLIENT_CERT",
)
_EXTRA_MODELS = "LODESTONE_EMBED_EXTRA_MODELS"
_RERANKER = "LODESTONE_EMBED_RERANKER"
_PATHS = (
    TRACES_FOLDER,
    "LODESTONE_ACCEPTED_TOKENS_FILE",
    "LODESTONE_TOKEN_FILE",
    "LODESTONE_TLS_CERT_FILE",
    "LODESTONE_TLS_KEY_FILE",
    "LODESTONE_TLS_CA_FILE",
    "LODESTONE_IO_STATE_DIR",
    "LODESTONE_EMBED_CACHE_DIR",
    "LODESTONE_EMBED_REMOTE_KEY_FILE",
)


def seen_from_here(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment with absolute paths: services run in another folder than the command.

    A model is a path when it is written with a `/` and such a folder is there, else a name.
    """
    found = dict(environment)
    for name in _PATHS:
        if found.get(name):
            found[name] = os.path.abspath(found[name])  # noqa: PTH100 - links stay as they are
    if _RERANKER in found:
        found[_RERANKER] = _folder_from_here(found[_RERANKER])
    if EMBED_MODEL in found:
        found[EMBED_MODEL] = _model_from_here(found[EMBED_MODEL])
    if models := found.get(_EXTRA_MODELS):
        named = (item.partition("=") for item in models.split(","))
        found[_EXTRA_MODELS] = ",".join(
            f"{name}{equals}{_model_from_here(source)}" for name, equals, source in named
        )
    return found


def _model_from_here(source: str) -> str:
    return _folder_from_here(source) if "/" in source else source


def _folder_from_here(source: str) -> str:
    """Returns a folder's absolute path; what is none is told of by the service, as it was given."""
    is_folder = os.path.isdir(source)  # noqa: PTH112 - Path raises where it may not look
    return os.path.abspath(source) if is_folder else source  # noqa: PTH100 - as above


def service_environment(
    name: str,
    folder: DataFolder,
    run: RunFolder,
    environment: Mapping[str, str],
    database_url: str = "",
) -> dict[str, str]:
    """Returns the environment of a service; only the indexer learns the database's password."""
    defaults = {listen_variable(service): f"unix:{run.socket(service)}" for service in SERVICES}
    merged = {**defaults, **environment}
    own = {
        "io": {IO_ROOTS: DEFAULT_ROOTS, "LODESTONE_IO_STATE_DIR": str(folder.io_state)},
        "embed": {"LODESTONE_EMBED_CACHE_DIR": str(folder.models)},
        "indexer": {
            "LODESTONE_INDEXER_IO_ADDRESS": merged[listen_variable("io")],
            "LODESTONE_INDEXER_EMBED_ADDRESS": merged[listen_variable("embed")],
        },
    }[name]
    result = {
        listen_variable(name): defaults[listen_variable(name)],
        TRACES_FOLDER: str(folder.traces),
        **own,
        **environment,
    }
    result.pop(DATABASE_URL, None)
    if name == "indexer":
        result[DATABASE_URL] = database_url
    return result


def listen_variable(service: str) -> str:
    """Returns the name of the setting that says where a service listens."""
    return f"{PREFIX}{service.upper()}_LISTEN"


def given_settings(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns a digest of each setting of a service that the environment sets, by name.

    Digests, because values may hold passwords and the state file is kept.
    """
    prefix = f"{PREFIX}{name.upper()}_"
    extra = (*_OF_ALL, DATABASE_URL) if name == "indexer" else _OF_ALL
    return {
        variable: hashlib.blake2b(value.encode(), digest_size=8).hexdigest()
        for variable, value in environment.items()
        if variable.startswith(prefix) or variable in extra
    }


def changed_settings(recorded: Mapping[str, str], given: Mapping[str, str]) -> list[str]:
    """Returns the names that are set now to another value than the running process has.

    A setting that is not set now says nothing: a service that was started with it keeps it.
    """
    return sorted(name for name, digest in given.items() if recorded.get(name) != digest)


def has_unseen_names(recorded: Iterable[str], environment: Mapping[str, str]) -> bool:
    """Tells whether a `LODESTONE_*` name is set that no start has checked yet.

    Checking imports every service's settings, which a command over running services has no time
    for; a name that a running service was started with has been checked then.
    """
    checked = {*recorded, *_OF_THE_COMMAND}
    return any(name.startswith(PREFIX) and name not in checked for name in environment)


def check_environment(environment: Mapping[str, str]) -> None:
    """Raises StartError for a `LODESTONE_*` name that no process reads."""
    from importlib import import_module

    from services.runtime.settings import ServiceSettings, check_names, names_of

    for service in SERVICES:
        module = import_module(f"services.{service}.settings")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, ServiceSettings)
                and value is not ServiceSettings
            ):
                check_names(environment, f"{PREFIX}{service.upper()}_", names_of(value))


def check_listening(environment: Mapping[str, str]) -> None:
    """Raises StartError for an address at which the command could not ask whether all is well."""
    for service in SERVICES:
        variable = listen_variable(service)
        address = environment.get(variable, "unix:")
        if address.startswith("unix:"):
            continue
        if address.endswith(":0"):
            raise StartError(
                ExitCode.USAGE, f"{variable}={address}: name a port, so that others find it."
            )
        if environment.get("LODESTONE_TLS_CERT_FILE"):
            raise StartError(
                ExitCode.USAGE,
                f"{variable}={address} would speak TLS, and the command speaks none to what it "
                "starts: leave it unset, or start the services one by one, as docs/operations.md "
                "tells.",
            )


def check_before_restart(
    changed: Mapping[str, Iterable[str]], environment: Mapping[str, str]
) -> None:
    """Raises StartError when a service would not start with what is set now.

    A service that serves is not stopped for one that cannot start.

    Args:
        changed: names of the settings that changed, by service.
        environment: the settings of now.
    """
    from importlib import import_module

    from services.runtime.settings import load_settings
    from services.runtime.tokens import OwnToken, read_token_list

    for name in changed:
        kind = getattr(import_module(f"services.{name}.settings"), f"{name.capitalize()}Settings")
        settings = load_settings(kind, {DATABASE_URL: "", **environment})
        settings.refuse_unguarded()
        if settings.tls.paths():
            settings.tls.read()
        if settings.accepted_tokens_file is not None:
            read_token_list(settings.accepted_tokens_file)
        if settings.token_file is not None:
            OwnToken(settings.token_file)
        if name == "embed":
            from services.embed.specs import specs_of

            specs_of(settings)
    if DATABASE_URL in changed.get("indexer", ()):
        import asyncio

        from services.indexer.storage.database import Database

        database = Database(environment[DATABASE_URL], connections=2, timeout_seconds=10)
        asyncio.run(database.probe())
