"""Our own cross-signing keys, asked of another device of the account that a person has just verified.

Source: "Secrets", "Sharing" of the Matrix specification. Nothing is taken from any other device, nor unasked; and we
give none away.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from typing import Any

from armorclaw.log import get_logger
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.policy import Trust as DeviceTrust
from armorclaw.matrix.crypto.standing import Standing
from armorclaw.matrix.trust.exchange import send_to_devices
from armorclaw.matrix.trust.identity import USAGES, PrivateIdentity
from armorclaw.matrix.trust.secret_storage import secret_type
from armorclaw.matrix.trust.verification import Message

log = get_logger(__name__)

_REQUEST, _SEND = "m.secret.request", "m.secret.send"


class SecretRequests:
    """Of one device."""

    def __init__(self, client: MatrixClient, standing: Standing) -> None:
        self._client = client
        self._standing = standing
        self._own = str(client.mxid)
        self._device_id = ""
        self._asked: dict[str, str] = {}  # usage, by id of the request
        self._seeds: dict[str, bytes] = {}

    async def ask(self, device_id: str) -> None:
        """Ask a device for all of them; what was asked before is not waited for any more. Raises MatrixError."""
        self._device_id, self._seeds = device_id, {}
        self._asked = {secrets.token_hex(16): usage for usage in USAGES}
        for request_id, usage in self._asked.items():
            content = {
                "action": "request",
                "name": secret_type(usage),
                "request_id": request_id,
                "requesting_device_id": str(self._client.device_id),
            }
            await send_to_devices(self._client, self._own, [device_id], Message(_REQUEST, content), request_id)

    def take(self, type_: str, sender: str, content: Mapping[str, Any], sender_key: str) -> PrivateIdentity | None:
        """A message about secrets, and whose channel it came over; the identity once all of it is there."""
        usage = self._asked.get(str(content.get("request_id")))
        if type_ != _SEND or sender != self._own or usage is None or not sender_key:
            return None
        device = self._standing.device_of_key(sender, sender_key)
        if device is None or device.device_id != self._device_id or device.trust is not DeviceTrust.VERIFIED:
            log.warning("a secret came from another device than was asked, or one not verified")
            return None
        try:
            secret = str(content.get("secret")).rstrip("=")
            self._seeds[usage] = base64.b64decode(secret + "=" * (-len(secret) % 4), validate=True)
            return PrivateIdentity.from_seeds(sender, self._seeds) if len(self._seeds) == len(USAGES) else None
        except (binascii.Error, ValueError):
            log.warning("a secret that came is none", usage=usage)
            return None
