"""Hostile neighbours and their victims: `python -m tests.neighbours`."""
