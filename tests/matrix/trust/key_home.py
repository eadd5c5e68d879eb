"""The part of a homeserver that keeps keys, in this process, for one or more users; it can fail at any request."""

from __future__ import annotations

import copy
import json
from typing import Any
from urllib.parse import unquote

import trio
from mautrix.errors import MatrixConnectionError, make_request_error

from armorclaw.matrix.crypto.olm import Account
from armorclaw.matrix.trust.signing import signed_text

KINDS = ("master_key", "self_signing_key", "user_signing_key")


class KeyHome:
    """`fail_at` is the number of the request that fails, counted from 0; with `lost`, after it has had its effect."""

    def __init__(self) -> None:
        self.devices: dict[str, dict[str, dict[str, Any]]] = {}
        self.identities: dict[str, dict[str, dict[str, Any]]] = {}
        self.account_data: dict[str, dict[str, Any]] = {}
        self.asks_password: str | None = None
        self.published = 0
        self.requests: list[str] = []
        self.fail_at: int | None = None
        self.lost = False

    def add_device(self, user_id: str, device_id: str, account: Account) -> None:
        keys = {f"{name}:{device_id}": key for name, key in account.identity_keys.items()}
        made: dict[str, Any] = {"user_id": user_id, "device_id": device_id, "algorithms": [], "keys": keys}
        made["signatures"] = {user_id: {f"ed25519:{device_id}": account.sign(signed_text(made))}}
        self.devices.setdefault(user_id, {})[device_id] = made

    async def request(self, user_id: str, method: str, path: str, body: Any) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        number = len(self.requests)
        self.requests.append(f"{method} {path}")
        failing = number == self.fail_at
        if failing and not self.lost:
            raise MatrixConnectionError("it is away")
        try:
            answer = self._answer(user_id, method, path, json.loads(body) if isinstance(body, str) else body or {})
        finally:
            if failing:
                raise MatrixConnectionError("its answer is lost")
        return copy.deepcopy(answer)

    def _answer(self, user_id: str, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path.endswith("keys/query"):
            return self._query(list(body["device_keys"]))
        if path.endswith("keys/device_signing/upload"):
            return self._publish(user_id, body)
        if path.endswith("keys/signatures/upload"):
            return self._sign(body)
        type_ = unquote(path.partition("/account_data/")[2])
        if type_ and method == "PUT":
            self.account_data[type_] = body
            return {}
        if type_:
            if type_ not in self.account_data:
                raise make_request_error(404, "none", "M_NOT_FOUND", "none")
            return self.account_data[type_]
        raise AssertionError(path)

    def _query(self, users: list[str]) -> dict[str, Any]:
        answer: dict[str, Any] = {"device_keys": {user: self.devices.get(user, {}) for user in users}}
        for kind in KINDS:
            found = {user: self.identities[user][kind] for user in users if user in self.identities}
            answer[f"{kind}s"] = found
        return answer

    def _publish(self, user_id: str, body: dict[str, Any]) -> dict[str, Any]:
        given = {kind: body[kind] for kind in KINDS}
        if user_id in self.identities and _keys(given) == _keys(self.identities[user_id]):
            return {}  # the same again
        auth = body.get("auth")
        wanted = self.asks_password
        if (wanted is not None or user_id in self.identities) and (auth is None or auth.get("password") != wanted):
            error = make_request_error(401, "who are you?", None, "who are you?")
            error.body = {"session": "s1", "flows": [{"stages": ["m.login.password"]}]}  # type: ignore[attr-defined]
            raise error
        if auth is not None:
            assert (auth["type"], auth["session"]) == ("m.login.password", "s1")
            assert auth["identifier"] == {"type": "m.id.user", "user": user_id}
        self.identities[user_id] = given
        self.published += 1
        for device in self.devices.get(user_id, {}).values():
            device["signatures"] = {
                user_id: {k: v for k, v in device["signatures"][user_id].items() if k.endswith(device["device_id"])}
            }
        return {}

    def _sign(self, body: dict[str, Any]) -> dict[str, Any]:
        for user, each in body.items():
            for name, signed in each.items():
                target = self.devices.get(user, {}).get(name) or self.identities[user]["master_key"]
                for signer, signatures in signed["signatures"].items():
                    target.setdefault("signatures", {}).setdefault(signer, {}).update(signatures)
        return {"failures": {}}


def _keys(objects: dict[str, Any]) -> list[Any]:
    return [objects[kind]["keys"] for kind in KINDS]
