"""The chat in a terminal: what is typed, what is written, and the commands between."""
