"""The daemon: every part put together, from start-up to shutdown."""
