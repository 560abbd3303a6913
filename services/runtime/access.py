"""Who calls, and what each method asks of its caller: the rules stand in the contracts."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool

from lodestone.access.v1 import access_pb2
from services.runtime.errors import ForbiddenError

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERYTHING = "*"
_TEMPLATE = re.compile(r"([^{]*)\{([\w.]+)\}")


class Scope(StrEnum):
    """What an identity may do; a value of `lodestone.access.v1.Scope`, in lower case."""

    READ = "read"
    WRITE = "write"
    RUN = "run"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller."""

    name: str
    scopes: frozenset[Scope]
    workspaces: tuple[str, ...] = ()
    """Ids of workspaces, or their beginnings with a `*` behind; `*` is all."""

    roots: tuple[str, ...] = ()
    """Ids of roots of the io service, likewise."""

    def may_use(self, resource: str) -> bool:
        """Returns whether a workspace or a root is this caller's, by its resource name."""
        if self.is_unrestricted:
            return True
        if _means_all(resource):
            return False
        collection, _, rest = resource.partition("/")
        identifier = rest.partition("/")[0]
        allowed = {"workspaces": self.workspaces, "roots": self.roots}.get(collection, ())
        return any(fnmatchcase(identifier, pattern) for pattern in allowed)

    @property
    def is_unrestricted(self) -> bool:
        """Whether every workspace and every root is this caller's."""
        return EVERYTHING in self.workspaces and EVERYTHING in self.roots


LOCAL = Identity("local", frozenset(Scope), (EVERYTHING,), (EVERYTHING,))
"""Whoever reaches a service that knows no identities: it listens to this machine alone."""

_READER: ContextVar[Identity | None] = ContextVar("reader", default=None)


def visible_workspaces() -> list[str] | None:
    r"""Returns the workspaces that what is read now is for, as patterns of SQL's LIKE; None is all.

    It is None unless a call that reads is handled for a caller whose token names workspaces. Ids
    hold neither `%`, `_` nor `\`.
    """
    reader = _READER.get()
    if reader is None or EVERYTHING in reader.workspaces:
        return None
    return [pattern.replace(EVERYTHING, "%") for pattern in reader.workspaces]


def is_visible(resource: str) -> bool:
    """Returns whether what is read now is for somebody who may see a workspace or a root."""
    reader = _READER.get()
    return reader is None or reader.may_use(resource)


_CALLER: ContextVar[str] = ContextVar("caller", default="")


def caller_name() -> str:
    """Returns the name of whose call is handled now; empty where callers have no tokens."""
    return _CALLER.get()


def note_caller(identity: Identity) -> None:
    """Has the rest of this task, which handles one call, know who makes it."""
    _CALLER.set(identity.name)


def read_for(identity: Identity) -> None:
    """Has the rest of this task, which handles one call, read what a caller may see."""
    _READER.set(identity)


def _means_all(resource: str) -> bool:
    return resource in {"", "workspaces/-"}


@dataclass(frozen=True, slots=True)
class MethodRule:
    """What a method asks of its caller."""

    scope: Scope | None
    """None: the contract names no rule, and nobody may call it."""

    resources: tuple[ResourcePath, ...] = ()
    shared: bool = False

    def check_scope(self, identity: Identity) -> None:
        """Raises ForbiddenError unless the caller may call the method on some resource."""
        if self.scope is None:
            raise ForbiddenError("This method has no access rule, so nobody may call it.")
        if self.scope not in identity.scopes:
            raise ForbiddenError(f"This method needs a token of scope {self.scope.value!r}.")
        if not self.resources and not self.shared and not identity.is_unrestricted:
            raise ForbiddenError("This method is for tokens of all workspaces and roots.")

    def check_request(self, identity: Identity, request: Any) -> None:
        """Raises ForbiddenError unless every resource that a request names is the caller's.

        The same answer is given for one that does not exist.
        """
        for resource in self.resources:
            for name in resource.names_in(request):
                if self.shared and _means_all(name):
                    continue
                if not identity.may_use(name):
                    what = "a root" if name.startswith("roots/") else "a workspace"
                    raise ForbiddenError(f"The request names {what} that is not the token's.")


@dataclass(frozen=True, slots=True)
class ResourcePath:
    """Where in a request the name of a resource stands."""

    fields: tuple[tuple[str, bool], ...]
    """Names of fields from the outermost in, each with whether it is repeated."""

    prefix: str = ""

    @classmethod
    def parse(cls, text: str, message: Any) -> ResourcePath:
        """Returns the path that a rule means.

        Raises:
            ValueError: the message has no such field.
        """
        match = _TEMPLATE.fullmatch(text)
        prefix, path = (match[1], match[2]) if match else ("", text)
        fields = []
        for name in path.split("."):
            found = message.fields_by_name.get(name) if message is not None else None
            if found is None:
                raise ValueError(f"an access rule names {text!r}, which the request lacks")
            fields.append((name, bool(found.is_repeated)))
            message = found.message_type
        return cls(tuple(fields), prefix)

    def names_in(self, request: Any) -> Iterator[str]:
        """Yields the resources named in a request, the empty name where there is none."""
        found: list[Any] = [request]
        for name, is_repeated in self.fields:
            values = [getattr(item, name) for item in found]
            found = [item for value in values for item in value] if is_repeated else values
        return (f"{self.prefix}{value}" for value in found)


@dataclass(slots=True)
class AccessRules:
    """The rules of the contracts, by the method's full name as gRPC spells it."""

    _known: dict[str, MethodRule] = field(default_factory=dict)

    def of(self, method: str) -> MethodRule:
        """Returns the rule of a method, e.g. of `/lodestone.io.v1.ScanService/ScanTree`."""
        rule = self._known.get(method)
        if rule is None:
            rule = self._known[method] = _rule_of(method)
        return rule


def _rule_of(method: str) -> MethodRule:
    service_name, _, name = method.strip("/").rpartition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        descriptor = service.methods_by_name[name]
    except KeyError:
        return MethodRule(None)
    rule = descriptor.GetOptions().Extensions[access_pb2.rule]
    scope_name = access_pb2.Scope.Name(rule.scope).removeprefix("SCOPE_").lower()
    if scope_name not in set(Scope):
        return MethodRule(None)
    paths = tuple(ResourcePath.parse(path, descriptor.input_type) for path in rule.resources)
    return MethodRule(Scope(scope_name), paths, shared=rule.shared)
