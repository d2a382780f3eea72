"""The floors of a fleet: the least that takes messages from NATS, and that posts events to an API, each a process of its own.

    consumer   takes so many messages of a durable consumer with nats-py, and acknowledges each; it looks at nothing
    client     posts so many events to an API on one connection, as JSON arrays that it has before the clock runs

Each says how it went in a line of JSON. It must never import the agent: what the agent does otherwise tomorrow must not move it.
"""

import argparse
import json
import socket
import sys
import time
from urllib.parse import urlsplit

import nats
import uvloop

from tests.benchmarks.floor import build_body
from tests.benchmarks.load import Sent, blocks

FETCH_MESSAGES = 32
FETCH_SECONDS = 10.0
BATCH = 1_000


async def consume(server: str, stream: str, consumer: str, messages: int) -> Sent:
    """Take and acknowledge so many messages."""
    client = await nats.connect(server)
    pull = await client.jetstream().pull_subscribe_bind(consumer, stream=stream)
    cpu, begin, taken = time.process_time(), time.monotonic(), 0
    while taken < messages:
        for message in await pull.fetch(FETCH_MESSAGES, timeout=FETCH_SECONDS):
            await message.ack()
            taken += 1
    await client.flush()
    sent = Sent(begin, time.monotonic(), time.process_time() - cpu)
    await client.close()
    return sent


def post(url: str, events: int) -> Sent:
    """Post so many events, and wait for the answer of each request."""
    address = urlsplit(url)
    head = b"POST /v1/events HTTP/1.1\r\nhost: api\r\ncontent-length: %d\r\n\r\n"
    bodies = [build_body([block]) for block in blocks(events, min(BATCH, events))]
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        cpu, begin = time.process_time(), time.monotonic()
        for body in bodies:
            connection.sendall(head % len(body) + body)
            answer = b""
            while not answer.endswith(b"{}"):
                answer += connection.recv(4096)
        return Sent(begin, time.monotonic(), time.process_time() - cpu)


def main() -> None:
    """Do what the arguments say, and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fleet_floor", description=main.__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    consumer, client = kinds.add_parser("consumer"), kinds.add_parser("client")
    for name in ("server", "stream", "consumer"):
        consumer.add_argument(name)
    consumer.add_argument("messages", type=int)
    client.add_argument("url")
    client.add_argument("events", type=int)
    options = parser.parse_args()
    if options.kind == "consumer":
        sent = uvloop.run(consume(options.server, options.stream, options.consumer, options.messages))
    else:
        sent = post(options.url, options.events)
    sys.stdout.write(json.dumps(sent._asdict()) + "\n")


if __name__ == "__main__":
    main()
