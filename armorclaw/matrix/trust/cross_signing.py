"""Our own cross-signing identity: made at the first login, taken over with a recovery key, or missed and said so.

`settle` looks at what the homeserver has and does the next right thing, whatever was interrupted before. An identity
that is there is never replaced.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import attrs
import trio
from mautrix.api import Method, Path
from mautrix.errors import MatrixRequestError, MatrixResponseError, MNotFound

from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.trust import secret_storage
from armorclaw.matrix.trust.identity import (
    USAGES,
    Identity,
    PrivateIdentity,
    Signer,
    device_in,
    identity_in,
)
from armorclaw.matrix.trust.port import GiveRecoveryKey
from armorclaw.matrix.trust.records import Records, Recovery
from armorclaw.matrix.trust.secret_storage import WrongKeyError
from armorclaw.structure import Secret

log = get_logger(__name__)

Tell = Callable[[str, Literal["info", "warning", "error"], str], Awaitable[None]]
"""Tells people: the name of an alert, how bad it is, and a sentence."""

State = Literal["unknown", "signed", "unsigned", "unpublished"]


class DeviceMissingError(MatrixResponseError):
    """The homeserver does not name our own device: not yet, or no more."""


@attrs.frozen
class Standing:
    """How our device stands: `signed` by the account's own identity, or not, and then what helps (`hint`).
    `unpublished`: the homeserver does not have its keys, or no more.

    `master` is the identity's public key, None if there is none. `private`: we have its keys, and so can sign other
    devices of ours and people we verify.
    """

    state: State
    hint: str = ""
    master: str | None = None
    private: bool = False


class CrossSigning:
    """Of one account, while it is logged in."""

    def __init__(
        self,
        account: str,
        client: MatrixClient,
        device: Signer,
        records: Records,
        *,
        password: Callable[[], Secret | None],
        recovery_key: GiveRecoveryKey,
        tell: Tell,
    ) -> None:
        self._account = account
        self._client = client
        self._device = device
        self._records = records
        self._password = password
        self._recovery_key = recovery_key
        self._tell = tell
        self._user_id = str(client.mxid)
        self._device_id = str(client.device_id)
        self._storing = trio.Lock()
        """Held while secrets are stored: in between they are sealed with two keys."""

    async def query(self, user_id: str) -> dict[str, Any]:
        """What the homeserver says of the keys of a user now. Raises MatrixError."""
        body = {"timeout": 10_000, "device_keys": {user_id: []}}
        answer: dict[str, Any] = await self._client.api.request(Method.POST, Path.v3.keys.query, body)
        return answer

    async def settle(self) -> Standing:
        """Have our device signed, if anything we have makes that possible.

        Raises MatrixError, and storage_failed or storage_full when the disk does not take what must be on it first.
        """
        answer = await self.query(self._user_id)
        device = device_in(answer, self._user_id, self._device_id)
        if device is None:
            raise DeviceMissingError("the homeserver does not name our own device")
        published = identity_in(answer, self._user_id)
        await self._look_at(published)
        private = self._records.private(self._user_id)
        if private is not None and published is not None and not private.is_of(published):
            log.warning("cross-signing keys are of another identity now", account=self._account)
            async with self._storing:
                self._records.abandon()
                self._records.trust_own_master(None)
            private = None
        if private is None:
            found = await self._find_private(published)
            if not isinstance(found, PrivateIdentity):
                return self._unsigned(published, device, found)
            private = found
        if published is None:
            await self._records.sync()  # nobody must rely on keys that a power cut takes away
            refusal = await self._publish(private)
            if refusal:
                return Standing("unsigned", refusal)
            self._records.saw_master(private.master.public)
        await self._store_pending(private)
        if published is None or not published.owns(device):
            await self.sign(private.own_device(device))
            log.info("device is signed", account=self._account, device=self._device_id)
        self._records.trust_own_master(private.master.public)
        return Standing("signed", "", private.master.public, private=True)

    async def sign(self, body: Mapping[str, Any]) -> None:
        """Upload signatures. Raises MatrixError, also when the homeserver takes a part of them only."""
        answer = await self._client.api.request(Method.POST, Path.v3.keys.signatures.upload, dict(body))
        if answer.get("failures"):
            raise MatrixResponseError("the homeserver did not take all signatures")

    async def renew_recovery_key(self) -> str:
        """A new recovery key; the one before opens nothing any more. It is kept until somebody was shown it.

        Whatever interrupts this, `settle` goes on with it, unless nothing has changed yet. Raises MatrixError,
        conflict, and storage_failed or storage_full.
        """
        async with self._storing:
            published = identity_in(await self.query(self._user_id), self._user_id)
            private = self._records.private(self._user_id)
            if private is None or (published is not None and not private.is_of(published)):
                what = f"account {self._account!r} does not have its cross-signing keys here"
                raise ArmorclawError("conflict", what, hint="its recovery key was made elsewhere")
            key = secret_storage.new_key()
            await self._describe(key)  # nothing is sealed with it: if this fails, all is as it was before
            self._records.renew(_recovery(key))
            await self._store(private, key)
            self._records.finish()
            return str(key.recovery_key)

    # -- where the keys come from

    async def _find_private(self, published: Identity | None) -> PrivateIdentity | str:
        """Keys from the recovery key, or new ones for an account that has none; or why there are none."""
        try:
            given = await self._recovery_key()
        except ArmorclawError as error:
            return str(error)
        key_id = secret_storage.default_key_id(await self._account_data(secret_storage.DEFAULT_KEY))
        if published is None and key_id is None:
            return self._begin()
        if given is None or key_id is None:
            return (
                "give the recovery key of the account (accounts."
                f"{self._account}.recovery_key_file), or verify this device from another one of it: "
                f"armorclaw matrix verify --account {self._account}"
            )
        try:
            key = secret_storage.open_key(
                key_id, await self._account_data(secret_storage.key_type(key_id)), given.reveal()
            )
            if published is None:
                return self._begin(key)
            kept = {usage: await self._account_data(secret_storage.secret_type(usage)) for usage in USAGES}
            private = secret_storage.opened(self._user_id, kept, key)
        except WrongKeyError as error:
            return f"the recovery key given for the account does not help: {error}"
        if not private.is_of(published):
            return "what the recovery key opens is of an older identity: reset it with another client"
        self._records.keep_private(private)
        return private

    def _begin(self, key: Any = None) -> PrivateIdentity:
        """A new identity, written down before anybody hears of it."""
        private = PrivateIdentity.generate(self._user_id)
        made = key or secret_storage.new_key()
        self._records.begin(private, _recovery(made))
        return private

    def _unsigned(self, published: Identity | None, device: Mapping[str, Any], hint: str) -> Standing:
        if published is None:
            return Standing("unsigned", hint)
        if published.owns(device):  # by another device that verified this one
            return Standing("signed", "", published.master)
        return Standing("unsigned", hint, published.master)

    async def _look_at(self, published: Identity | None) -> None:
        """Tell people of an identity that is another one than before."""
        before = self._records.seen_master
        if published is None or published.master == before:
            return
        private = self._records.private(self._user_id)
        if before is not None and (private is None or not private.is_of(published)):
            self._records.trust_own_master(None)
            await self._tell(
                "matrix_identity_reset",
                "warning",
                f"the cross-signing identity of account {self._account!r} ({self._user_id}) was reset: if that was"
                " none of you, somebody else has its password",
            )
        self._records.saw_master(published.master)

    # -- publishing

    async def _publish(self, private: PrivateIdentity) -> str:
        """Have everybody know it; why the homeserver does not take it, or nothing. Raises MatrixError."""
        body = private.public_objects(self._device_id, self._device)
        try:
            await self._upload(body)
            return ""
        except MatrixRequestError as error:
            session = _session_of(error)
            if session is None:
                raise
        # it asks who we are: either it always does, or somebody was faster and this would replace their identity
        if identity_in(await self.query(self._user_id), self._user_id) is not None:
            return "the account has just been given an identity by another device"
        password = self._password()
        if password is None:
            return f"the homeserver wants the password once more: give accounts.{self._account}.password_file"
        auth = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self._user_id},
            "password": password.reveal(),
            "session": session,
        }
        try:
            await self._upload({**body, "auth": auth})
        except MatrixRequestError as error:
            if _session_of(error) is None:
                raise
            return "the homeserver does not take the password, or wants more than that"
        return ""

    async def _upload(self, body: Mapping[str, Any]) -> None:
        await self._client.api.request(Method.POST, Path.v3.keys.device_signing.upload, dict(body), sensitive=True)

    async def _store_pending(self, private: PrivateIdentity) -> None:
        """Store what is not known to be stored, and tell people that there is a recovery key to write down."""
        async with self._storing:
            if not self._records.pending:
                return
            if (recovery := self._records.recovery()) is not None:
                key = secret_storage.open_key(recovery.key_id, recovery.described, recovery.recovery_key)
                await self._describe(key)
                await self._store(private, key)
            await self._tell(  # sooner twice than never
                "matrix_recovery_key",
                "info",
                f"the cross-signing identity of account {self._account!r} has a new recovery key, which is shown once"
                f" by: armorclaw matrix recovery-key {self._account}",
            )
            self._records.finish()

    async def _describe(self, key: Any) -> None:
        await self._set_account_data(secret_storage.key_type(key.id), secret_storage.description(key))

    async def _store(self, private: PrivateIdentity, key: Any) -> None:
        await self._records.sync()  # a key that a power cut takes away must not be the only one
        for type_, content in secret_storage.sealed(private, key).items():
            await self._set_account_data(type_, content)
        await self._set_account_data(secret_storage.DEFAULT_KEY, {"key": key.id})

    async def _account_data(self, type_: str) -> dict[str, Any] | None:
        path = Path.v3.user[self._user_id].account_data[type_]
        try:
            answer: dict[str, Any] = await self._client.api.request(Method.GET, path)
        except MNotFound:
            return None
        return answer

    async def _set_account_data(self, type_: str, content: Mapping[str, Any]) -> None:
        path = Path.v3.user[self._user_id].account_data[type_]
        await self._client.api.request(Method.PUT, path, dict(content))


def _recovery(key: Any) -> Recovery:
    return Recovery(key.id, key.recovery_key, secret_storage.description(key))


def _session_of(error: MatrixRequestError) -> str | None:
    """Of user-interactive authentication: the session in which the homeserver wants to be told more."""
    body = getattr(error, "body", None)
    session = body.get("session") if isinstance(body, dict) and error.http_status == 401 else None
    return session if isinstance(session, str) else None
