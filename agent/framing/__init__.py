"""Bytes in, lines out: pure protocol framing, one module per protocol."""
