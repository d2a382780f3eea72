"""What operators do with a queue: look into it, check it, mend it, empty it, give dead letters another try."""
