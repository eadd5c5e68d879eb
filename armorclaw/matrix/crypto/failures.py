"""The two ways in which keys can be missing: all of them, or the one for an event."""

from __future__ import annotations


class KeysLost(Exception):  # noqa: N818 - a state of the account, told apart from errors of a call
    """The device's keys are gone: the file is damaged or missing, or belongs to another device. `why` is for people.

    Only a new device helps: what was said to this one stays unreadable.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


class Undecryptable(Exception):  # noqa: N818
    """An event cannot be read, or must not be believed.

    `reason` is one of: no_key, key_deleted, withheld:<code>, replayed, unverified_device, mismatch, malformed,
    unknown_algorithm.
    `later`: what is missing may come yet, and then `Encryption.on_keys` names the `session_id`.
    """

    def __init__(self, reason: str, session_id: str = "", *, later: bool = False) -> None:
        self.reason = reason
        self.session_id = session_id
        self.later = later
        super().__init__(reason)
