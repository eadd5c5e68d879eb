"""What leaves the bridge, and what became of it."""
