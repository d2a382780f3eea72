"""Ingest: from a client's socket to a validated block of events in a pipeline."""
