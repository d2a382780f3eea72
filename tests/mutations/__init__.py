"""Proof that the tests would notice: every call that makes something durable, taken away or put out of order, one at a time."""
