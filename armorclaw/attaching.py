"""Agents inside the program that embeds the bridge: what each is connected to, and that there is one of a name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from armorclaw.attached import AttachedAgent
from armorclaw.config import Config, check_rooms, is_name
from armorclaw.containers.secrets import secrets_payload
from armorclaw.errors import ArmorclawError
from armorclaw.events.methods import hears
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.guard.beginnings import Beginnings, Declared
from armorclaw.guard.grants import Grants
from armorclaw.guard.keystore import KeyStore
from armorclaw.guard.quotas import Quotas
from armorclaw.rpc.caller import OnProgress
from armorclaw.rpc.local import LocalStream, call_local, stream_local
from armorclaw.rpc.registry import Registry, Role
from armorclaw.structure import FaultError


class Attaching:
    """Makes them; `running` are those that run, by name."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        subscriptions: Subscriptions,
        *,
        grants: Grants,
        beginnings: Beginnings,
        keystore: KeyStore,
        quotas: Quotas,
    ) -> None:
        self.running: dict[str, AttachedAgent] = {}
        self._config = config
        self._registry = registry
        self._subscriptions = subscriptions
        self._grants = grants
        self._beginnings = beginnings
        self._keystore = keystore
        self._quotas = quotas

    def attach(self, name: str, rooms: Sequence[str], account: str) -> AttachedAgent:
        """See `Bridge.attach`."""
        declared = self._config.agents.get(name)
        is_declared = declared is not None and declared.runtime == "attached"
        if declared is not None and is_declared:
            if rooms:
                raise ArmorclawError(
                    "invalid_params", f"the rooms of {name} are in its declaration", hint="leave them out"
                )
            rooms, account = declared.rooms, declared.account
        self._check(name, rooms, account)

        @asynccontextmanager
        async def granted() -> AsyncIterator[None]:
            taken = name in self.running or (not is_declared and self._grants.account_of(name) is not None)
            if taken:
                raise ArmorclawError("conflict", f"there is an agent {name!r} already", hint="choose another name")
            self.running[name] = agent
            try:
                if not is_declared:
                    await self._beginnings.welcome(Declared(name, account, rooms))
                yield
            finally:
                del self.running[name]
                if not is_declared:
                    self._beginnings.leave(name)

        async def call(method: str, params: dict[str, Any]) -> Any:
            self._quotas.check(name, self._registry.get(method))
            return await call_local(self._registry, method, params, role=Role.AGENT, agent=name)

        def stream(
            method: str, params: dict[str, Any], *, on_progress: OnProgress | None = None
        ) -> AbstractAsyncContextManager[LocalStream]:
            self._quotas.check(name, self._registry.get(method))
            return stream_local(self._registry, method, params, role=Role.AGENT, agent=name, on_progress=on_progress)

        async def take_secrets() -> bytes:
            keys = declared.keys if declared is not None else ()
            return bytes(secrets_payload([await self._keystore.get(key, by=f"agent {name}") for key in keys]))

        agent = AttachedAgent(
            name,
            rooms,
            self._subscriptions,
            allowed=partial(hears, self._grants, name),
            granted=granted,
            take_secrets=take_secrets,
            call=call,
            stream=stream,
        )
        return agent

    def _check(self, name: str, rooms: Sequence[str], account: str) -> None:
        if not is_name(name):
            hint = "use 1 to 32 characters of a-z, 0-9, - and _, beginning with a letter or digit"
            raise ArmorclawError("invalid_params", f"an agent cannot be named {name[:80]!r}", hint=hint)
        if self._config.accounts and account not in self._config.accounts:  # without any there is no Matrix to miss
            what = f"there is no Matrix account {account!r} for agent {name}"
            raise ArmorclawError("matrix_not_configured", what, hint=f"add [accounts.{account}] to the configuration")
        try:
            check_rooms(rooms)
        except FaultError as fault:
            raise ArmorclawError("invalid_params", f"rooms of agent {name}", why=fault.why, hint=fault.fix) from None
