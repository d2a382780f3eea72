"""The way to a queue, through the daemon or without one, and copies of its events."""
