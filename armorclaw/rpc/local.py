"""Calling a method from within the bridge's own program: the same params, results and errors, and no connection."""

from __future__ import annotations

import os
from typing import Any, cast

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.peer import Call, Peer
from armorclaw.rpc.registry import Registry, Role


class _Here:
    """Stands where a connection would: the caller is this very process."""

    passes_fds = False

    def __init__(self, role: Role, agent: str | None) -> None:
        self.role = role
        self.agent = agent
        self.uid = os.geteuid()
        self.pid = os.getpid()


async def call_local(
    registry: Registry, method: str, params: dict[str, Any], *, role: Role, agent: str | None = None
) -> Any:
    """The result as its JSON would decode. Raises method_not_found, denied, invalid_params, what the method raises.

    Methods that need a connection, such as events.subscribe, refuse.
    """
    found = registry.table(role).get(method)
    if found is None:
        name = "method_not_found" if registry.get(method) is None else "denied"
        raise ArmorclawError(name, f"{method} cannot be called by the role {role}")
    call = Call(cast(Peer, _Here(role, agent)), method)
    value = found.handler(call, found.read(params))
    return found.write(await value if found.is_async else value)
