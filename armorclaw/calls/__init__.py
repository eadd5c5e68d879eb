"""Voice calls with agents: so far their methods alone, which say that there are none yet."""
