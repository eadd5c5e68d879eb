"""What mautrix makes of encrypted files: another's work than that under test."""

from __future__ import annotations

from armorclaw.matrix.crypto.olm import load_mautrix_crypto

load_mautrix_crypto()

from mautrix.crypto.attachments import decrypt_attachment, encrypt_attachment  # noqa: E402

__all__ = ["decrypt_attachment", "encrypt_attachment"]
