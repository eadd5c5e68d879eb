"""What agents use: read, kept for ten minutes, told of near a limit."""
