"""Spools: the queue directories that agents leave behind, and how the next agent delivers and counts them."""
