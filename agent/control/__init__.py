"""The control socket: what it is asked, what it answers, and the client that asks."""
