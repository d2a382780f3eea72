"""The process behind the page: who may ask, what is asked, what is known, and the server."""
