"""The folders of a bridge, made or checked before anything is put into them."""

from __future__ import annotations

import os

from armorclaw.config import BridgeSection
from armorclaw.errors import ArmorclawError


def make_folders(section: BridgeSection) -> None:
    """Only the bridge writes there. Agents of other uids pass through to their own sockets and code, no more.

    Raises storage_failed.
    """
    for folder in (section.state_dir, section.runtime_dir):
        hint = f"make it: install -d -m 0711 {folder}, or name another in [bridge]"
        try:
            if not folder.exists():
                folder.mkdir(mode=0o711, parents=True)
                folder.chmod(0o711)  # whatever the umask; a folder that was there is its owner's to change
            mode = folder.stat().st_mode
        except OSError as error:
            raise ArmorclawError(
                "storage_failed", f"cannot use the folder {folder}", why=error.strerror or "", hint=hint
            ) from error
        if os.geteuid() == 0 and not mode & 0o001:
            why = "agents have uids of their own and cannot pass through it"
            raise ArmorclawError(
                "storage_failed", f"cannot use the folder {folder}", why=why, hint=f"chmod o+x {folder}"
            )
