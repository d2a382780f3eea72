"""What is known of the API's HTTP without a client of it."""

EVENTS_PATH = "/v8/artifacts/events"
STATUS_PATH = "/v8/artifacts/status"

FORWARDED_METHODS = "GET, HEAD, PUT, POST, OPTIONS, PATCH, DELETE"
"""What the front passes on."""
