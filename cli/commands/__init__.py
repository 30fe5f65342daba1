"""One file per command of `elchat`."""
