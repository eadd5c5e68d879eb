"""From what an agent says to the contents of Matrix events: Markdown, relations, parts where one does not hold it."""
