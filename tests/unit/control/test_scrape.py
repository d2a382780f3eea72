"""What is served for monitoring is found once in a while, however many ask."""

import anyio

from agent.control.router import Route
from agent.control.scrape import ANSWER_SECONDS, ScrapeListener
from agent.http.server import Head, Request, Response
from tests.support import virtual_time


def test_whoever_asks_within_a_second_gets_one_answer(anyio_backend_name: str) -> None:
    found: list[str] = []

    async def look(request: Request) -> Response:
        await anyio.sleep(0.5)  # as a sync of the disk takes
        found.append(request.path)
        return Response.json(len(found))

    async def main() -> None:
        listener = ScrapeListener([], [Route("GET", path, look, "") for path in ("/one", "/two")])
        answers: list[bytes] = []

        async def ask(method: str, path: str) -> None:
            answers.append((await listener.answer(Head(method, path, {}, {}))).body)

        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(ask, "GET", "/one")
                tasks.start_soon(ask, "GET", "/two")
            await anyio.sleep(ANSWER_SECONDS)
        assert sorted(found) == ["/one", "/one", "/two", "/two"]
        assert len(set(answers)) == 4
        await ask("POST", "/one")
        assert b"method_not_allowed" in answers[-1]

    virtual_time.run(anyio_backend_name, main)
