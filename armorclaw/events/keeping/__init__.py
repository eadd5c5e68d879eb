"""How long events are kept: what is erased, what is deleted, and whose floor may move."""
