"""What survives of a named subscription: where it stands, how often each event was given, what was given up."""
