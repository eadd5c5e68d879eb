"""Images made here, without a network."""
