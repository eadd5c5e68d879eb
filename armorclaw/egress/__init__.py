"""Egress by permission: an agent has no network, but perhaps a door in the bridge to the hosts it is granted."""
