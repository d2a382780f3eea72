"""HTTP/1.1, both ways: connections, a server, a client and a proxy."""
