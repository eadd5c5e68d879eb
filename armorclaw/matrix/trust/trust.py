"""Whom one account trusts while it is logged in: its own identity, the people it verifies, and who changed theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import trio
from mautrix.errors import MatrixError
from mautrix.types import UserID

from armorclaw.clock import Surroundings
from armorclaw.delivery.transport import Refused
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.encryption import Encryption
from armorclaw.matrix.failures import as_errors, judge
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.rooms import Rooms
from armorclaw.matrix.trust.cross_signing import CrossSigning, DeviceMissingError, Standing, Tell
from armorclaw.matrix.trust.exchange import Putter
from armorclaw.matrix.trust.identity import devices_in, fingerprint, identity_in
from armorclaw.matrix.trust.port import GiveRecoveryKey
from armorclaw.matrix.trust.records import Records
from armorclaw.matrix.trust.sas import End
from armorclaw.matrix.trust.secret_requests import SecretRequests
from armorclaw.matrix.trust.shapes import MatrixDevice, MatrixDevices
from armorclaw.matrix.trust.verification import Verification
from armorclaw.matrix.trust.verifications import Verifications
from armorclaw.structure import Secret

log = get_logger(__name__)

PAUSE = 5.0
"""Seconds between two looks at identities, however often a homeserver says that devices have changed."""

LOST = "the homeserver has lost the keys of the device; they are published again"


class Trust:
    """`run` keeps it; `on_devices` never waits. `verifications` are told what comes of the other side."""

    def __init__(
        self,
        account: str,
        client: MatrixClient,
        encryption: Encryption,
        putter: Putter,
        rooms: Rooms,
        around: Surroundings,
        *,
        password: Callable[[], Secret | None],
        recovery_key: GiveRecoveryKey,
        tell: Tell,
    ) -> None:
        self.standing = Standing("unknown")
        self.introduced = trio.Event()
        """Set once others can look up our device, signed if that can be: or once it is clear that they never can."""
        self.account = account
        self._encryption = encryption
        self._machine = encryption.machine
        self._records = Records(encryption.db)
        self._cross_signing = CrossSigning(
            account,
            client,
            encryption.channels.account,
            self._records,
            password=password,
            recovery_key=recovery_key,
            tell=tell,
        )
        self._secrets = SecretRequests(client, encryption.standing)
        self._around = around
        self._tell = tell
        self._own = End(str(client.mxid), str(client.device_id))
        self._settler: trio.lowlevel.Task | None = None  # what it hears of our own devices is no news to it
        self._nudged = trio.Event()
        self._identities = trio.Event()
        self.verifications = Verifications(account, client, self, putter, rooms, around, tell)
        encryption.on_verification = self.verifications.on_to_device
        encryption.on_secret = self._on_secret
        encryption.on_devices = self._on_devices

    async def run(self) -> None:
        """Until cancelled. A homeserver that is away is waited for; what it refuses for good is said and left."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_signed)
            nursery.start_soon(self._watch_identities)
            nursery.start_soon(self.verifications.run)

    # -- our own device

    async def _keep_signed(self) -> None:
        self._settler = trio.lowlevel.current_task()
        while True:
            self._nudged = trio.Event()
            await self._settle()
            await trio.sleep(PAUSE)
            await self._nudged.wait()

    async def _settle(self) -> None:
        """Until our device is signed, or only a person can help."""
        pacing = Pacing(self._around.random, first=0.5, cap=60.0)
        while True:
            try:
                await self._encryption.ensure_device()
                standing = await self._cross_signing.settle()
                await self._machine.query([self._own.user_id])
                break
            except DeviceMissingError as error:
                if self._encryption.device_missed():
                    log.warning("the homeserver has lost the keys of the device", account=self.account)
                    self.standing = Standing("unpublished", LOST)
                pause, why = pacing.next(), str(error)
            except MatrixError as error:
                verdict = judge(error)
                if not verdict.again:
                    standing = Standing("unsigned", f"the homeserver does not take the keys: {verdict.reason}")
                    break
                pause, why = pacing.next(verdict.after), verdict.reason
            except (ArmorclawError, OSError) as error:  # of the disk
                pause, why = pacing.next(), str(error)
            log.info("cross-signing waits", account=self.account, why=why)
            await trio.sleep(pause)
        if standing != self.standing and standing.state == "unsigned":
            log.warning("device is not signed", account=self.account, hint=standing.hint)
        self.standing = standing
        self.introduced.set()

    def _on_secret(self, type_: str, sender: str, content: Mapping[str, Any], sender_key: str) -> None:
        private = self._secrets.take(type_, sender, content, sender_key)
        if private is not None and private.master.public == self._records.trusted_own_master:
            log.info("cross-signing keys came from another device", account=self.account)
            self._records.keep_private(private)
            self._nudged.set()

    # -- identities of others

    def _on_devices(self, user_id: str) -> None:
        if user_id != self._own.user_id:
            self._identities.set()
        elif trio.lowlevel.current_task() is not self._settler:
            self._nudged.set()

    async def _watch_identities(self) -> None:
        """Tell people, once each, whose identity is another one than before."""
        while True:
            self._identities = trio.Event()
            for user_id, master in self._records.changed_identities():
                if user_id == self._own.user_id:
                    continue
                await self._tell(
                    "matrix_identity_changed",
                    "warning",
                    f"{user_id} has another cross-signing identity than before, seen by account {self.account!r}."
                    f" Ask them, then: armorclaw matrix verify {user_id}, or armorclaw matrix accept {user_id}",
                )
                self._records.told(user_id, master)
            await trio.sleep(PAUSE)
            await self._identities.wait()

    def accept_identity(self, user_id: str, master: str) -> None:
        """The user's identity with this master key is believed from now on. Raises not_found if theirs is another."""
        if not self._records.accept_identity(user_id, master):
            what = f"{user_id} has no cross-signing identity with this master key"
            raise ArmorclawError("not_found", what, hint="matrix.devices tells the one they have now")
        self._encryption.trust_changed(user_id)

    # -- keys

    def own(self) -> dict[str, str]:
        """Those of ours that others may rely on, by id."""
        keys = {f"ed25519:{self._own.device_id}": str(self._encryption.channels.account.signing_key)}
        master = self._records.trusted_own_master
        return keys if master is None else {**keys, f"ed25519:{master}": master}

    async def devices_of(self, user_id: str) -> list[str]:
        """All there are, by id, in order. Raises MatrixError."""
        return sorted(devices_in(await self._cross_signing.query(user_id), user_id))

    async def known(self, user_id: str, device_id: str | None) -> Mapping[str, str]:
        """The keys of a device and of its owner as the homeserver has them now, by id. Raises MatrixError."""
        answer = await self._cross_signing.query(user_id)
        identity = identity_in(answer, user_id)
        known: dict[str, str] = {}
        device = devices_in(answer, user_id).get(device_id or "")
        if device is not None and (key := fingerprint(device)) is not None:
            known[f"ed25519:{device_id}"] = key
        if identity is not None:
            if known.pop(f"ed25519:{identity.master}", None) is not None:
                # whoever names a device like a key wants the one taken for the other
                log.error("a device has the name of its owner's master key", account=self.account, user=user_id)
            known[f"ed25519:{identity.master}"] = identity.master
        return known

    async def conclude(self, v: Verification) -> None:
        """Keep what was proven, here and on the homeserver. Raises MatrixError; then it is done once more.

        Raises Refused if the identity is another one by now: the homeserver is asked twice, and may answer as it
        likes.
        """
        assert v.their_device is not None
        user, own = v.their_user, v.their_user == self._own.user_id
        answer = await self._cross_signing.query(user)
        await self._machine.query([user])
        device, identity = devices_in(answer, user).get(v.their_device), identity_in(answer, user)
        key = v.proven.get(f"ed25519:{v.their_device}")
        if masters := v.proven.keys() - {f"ed25519:{v.their_device}"}:
            now = identity is not None and f"ed25519:{identity.master}" in masters
            if identity is None or not now or not self._records.accept_identity(user, identity.master):
                raise Refused(f"{user} has another identity than the one that was proven")
        if key is not None:
            self._records.verify_device(user, v.their_device, key)
        private = self._records.private(self._own.user_id)
        if identity is not None and masters:
            if own:
                self._records.trust_own_master(identity.master)
            elif private is not None:
                await self._cross_signing.sign(private.verified(identity))
        if own and private is not None and device is not None and key is not None and fingerprint(device) == key:
            await self._cross_signing.sign(private.own_device(device))
        await self._machine.query([user])
        self._encryption.trust_changed(user)
        if own and private is None:
            await self._secrets.ask(v.their_device)

    # -- what can be asked

    async def devices(self, user_id: str | None) -> MatrixDevices:
        """Of a user, by default ourselves, as the homeserver has them now. Raises unavailable, matrix_refused."""
        user = user_id or self._own.user_id
        with as_errors(f"devices of {user}"):
            await self._machine.query([user])
        stored = await self._machine.crypto_store.get_devices(UserID(user)) or {}
        names = {str(device_id): device.name for device_id, device in stored.items()}
        rows = [
            MatrixDevice(
                device.device_id,
                names.get(device.device_id, ""),
                device.signing_key,
                device.trust.value,
                (user, device.device_id) == (self._own.user_id, self._own.device_id),
            )
            for device in self._machine.standing.devices(user)
        ]
        master, identity = self._identity(user)
        signed = None if self.standing.state == "unknown" else self.standing.state == "signed"
        return MatrixDevices(user, master, identity, rows, signed, self.standing.hint)

    def _identity(self, user_id: str) -> tuple[str | None, str]:
        """A user's master key, and how far it is trusted."""
        found = self._records.identity(user_id)
        if found is None:
            return None, "none"
        key, first = found
        if self._machine.standing.is_verified(user_id) or key == self._records.trusted_own_master:
            return key, "verified"
        return key, "tofu" if key == first else "changed"

    def recovery_key(self) -> str:
        """The one that nobody was shown yet. Raises not_found, and unavailable while it opens nothing yet."""
        if self.standing.state == "unknown" or self._records.pending:
            raise ArmorclawError("unavailable", f"the cross-signing of account {self.account!r} is not settled yet")
        found = self._records.recovery()
        if found is None:
            why = "it was shown before, or made elsewhere"
            what = f"there is no recovery key of account {self.account!r} to show"
            raise ArmorclawError("not_found", what, why=why, hint="--new makes another one, if the keys are here")
        return found.recovery_key

    def recovery_key_shown(self, key: str) -> None:
        """This one is forgotten here; not another one that was made meanwhile."""
        found = self._records.recovery()
        if found is not None and found.recovery_key == key:
            self._records.keep_recovery(None)

    async def new_recovery_key(self) -> str:
        """In place of the one before; kept until it is shown. Raises conflict, unavailable, matrix_refused.

        Once it has begun to take the other's place it does so, even if this is cut short.
        """
        try:
            with as_errors(f"recovery key of account {self.account!r}"):
                return await self._cross_signing.renew_recovery_key()
        except BaseException:
            self._nudged.set()
            raise
