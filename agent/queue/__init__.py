"""The file queue of one destination: records, segments, cursor, log and group commit."""
