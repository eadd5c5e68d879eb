"""What a class of params or results says of itself on the wire.

Light: whoever needs only the shapes imports no cattrs.
"""

from __future__ import annotations

from typing import Any, TypeVar

import attrs

T = TypeVar("T")

_OMITS_NONE = "__armorclaw_omits_none__"


def omit_none(cls: type[T]) -> type[T]:
    """Class decorator for results: a field whose default is None is left out while it is None."""
    setattr(cls, _OMITS_NONE, True)
    return cls


def omits_none(cls: type) -> bool:
    """Whether the class, or one that it was made from, is so decorated."""
    return bool(getattr(cls, _OMITS_NONE, False))


def wire_name(field: str) -> str:
    """What a field is called on the wire: `from_` is `from`."""
    return field.removesuffix("_")


class FieldError(ValueError):
    """What a validator finds wrong with one field. It does not repeat the value, which may be long, or a secret."""

    def __init__(self, field: attrs.Attribute[Any], rule: str) -> None:
        self.field = wire_name(field.name)
        super().__init__(rule)


@attrs.frozen
class Between:
    """A validator of attrs."""

    low: int
    high: int

    def __call__(self, _params: object, field: attrs.Attribute[int], value: int) -> None:
        if not self.low <= value <= self.high:
            raise FieldError(field, f"must be from {self.low} to {self.high}")


def between(low: int, high: int) -> Between:
    """For `attrs.field(validator=between(1, 100))`; what is generated from the shapes tells of it."""
    return Between(low, high)


def bounds(field: attrs.Attribute[Any]) -> Between | None:
    """The bounds of a field, if it has some."""
    validator = getattr(field.validator, "validator", field.validator)  # within attrs.validators.optional
    return validator if isinstance(validator, Between) else None
