"""The soak: real faults, for a given time and from a seed, and an oracle that knows only the protocol."""
