"""Images, files and voice messages of rooms, up and down by stream."""
