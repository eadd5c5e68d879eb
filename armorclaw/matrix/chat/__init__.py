"""Orders to the bridge, given in a chat: `!claw …`."""
