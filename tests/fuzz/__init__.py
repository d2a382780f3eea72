"""Hostile input: one target for each kind, driven by Hypothesis in the suite and by atheris from `python -m tests.fuzz`."""
