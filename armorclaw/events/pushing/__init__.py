"""From a commit to a sink: relays, the subscriptions they serve, and the rules by which one is given events."""
