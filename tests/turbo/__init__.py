"""Real turbo, of two releases, alone and through the agent: `python -m tests.turbo` plays it in rounds."""
