"""What we take of mautrix's cryptography, once it is loaded on our own Olm. The one place that imports it."""

from __future__ import annotations

from armorclaw.matrix.crypto.olm import load_mautrix_crypto

load_mautrix_crypto()

from mautrix.crypto.account import OlmAccount  # noqa: E402
from mautrix.crypto.device_lists import DeviceListMachine  # noqa: E402
from mautrix.crypto.signature import canonical_json  # noqa: E402
from mautrix.crypto.ssss.key import Key, KeyMetadata  # noqa: E402
from mautrix.crypto.ssss.types import EncryptedAccountDataEventContent  # noqa: E402
from mautrix.crypto.ssss.util import decode_base58_recovery_key  # noqa: E402
from mautrix.crypto.store.asyncpg import PgCryptoStore  # noqa: E402
from mautrix.util import async_db  # noqa: E402

__all__ = [
    "DeviceListMachine",
    "EncryptedAccountDataEventContent",
    "Key",
    "KeyMetadata",
    "OlmAccount",
    "PgCryptoStore",
    "async_db",
    "canonical_json",
    "decode_base58_recovery_key",
]
