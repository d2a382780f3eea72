"""From queued events to the API: batches, verdicts, decisions, and the worker that performs them."""
