"""What builds got out of the cache: tasks, hits and time saved, counted from what the queue keeps. The queue does not know it."""
