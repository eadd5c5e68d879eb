"""End-to-end encryption of one account. Nothing here is imported before the first session starts, but `vault`."""
