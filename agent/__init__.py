"""artifacts-agent: keeps Remote Cache usage events on disk and delivers them, so that build tools never wait."""

__version__ = "0.1.0"
