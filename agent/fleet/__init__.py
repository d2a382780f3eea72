"""A fleet: agents forward batches to NATS JetStream, the engine; relays deliver from there, with one pause and one rate.

`names` says what is called how in the engine, `message` how events travel, `records` what relays write down of them.
`engine` is the seam to the engine, and `nats_engine` the real one behind it. Of nats know `nats_*` and `inspection` alone.
"""
