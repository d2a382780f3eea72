"""`exec`: the agent of a job, and the command that is run beside it."""
