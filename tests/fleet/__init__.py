"""A fleet under faults: servers, relays and runners die at random, and every event has to be somewhere."""
