"""The checks of `check`: of this machine, and of the server."""
