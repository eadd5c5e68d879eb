"""What happens, as numbered events: written down once, pushed to whoever follows, kept until acknowledged."""

from armorclaw.events.event import Event
from armorclaw.events.journal import Journal

__all__ = ["Event", "Journal"]
