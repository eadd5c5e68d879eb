"""Who hears what is said in rooms: decided once for each event, when it comes."""
