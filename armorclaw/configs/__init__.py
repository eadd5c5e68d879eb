"""Files that operators attach: each is kept in a folder of its agent's, which the agent sees as /config."""
