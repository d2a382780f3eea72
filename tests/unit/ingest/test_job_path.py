"""A label goes through the path of a request unchanged, and the rest of the path is what it would be without it."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.client.lines import MAX_JOB
from agent.ingest.job_path import job_path, split_job, without_job

labels = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=MAX_JOB)


@given(labels)
def test_a_label_comes_out_as_it_went_in(job: str) -> None:
    path = f"{job_path(job)}/v8/artifacts/events"
    assert split_job(path, f"{path}?a=/b".encode()) == (
        job.encode(),
        "/v8/artifacts/events",
        b"/v8/artifacts/events?a=/b",
    )
    assert without_job(f"http://127.0.0.1:9900{job_path(job)}") == "http://127.0.0.1:9900"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v8/artifacts/events", (None, "/v8/artifacts/events", b"/v8/artifacts/events")),
        ("/artifacts-agent/job", (None, "/artifacts-agent/job", b"/artifacts-agent/job")),
        ("/artifacts-agent/job/x", (b"x", "/", b"/")),
        ("/artifacts-agent/job//a", (b"", "/a", b"/a")),
        ("*", (None, "*", b"*")),
    ],
)
def test_only_what_begins_as_such_a_path_has_a_label(path: str, found: tuple[bytes | None, str, bytes]) -> None:
    assert split_job(path, path.encode()) == found


@given(st.text("a/?#&=%2;", max_size=20))
def test_path_and_target_say_the_same_without_the_label_whatever_is_in_it(text: str) -> None:
    target = f"/artifacts-agent/job/{text}"
    path = urlsplit(target).path
    label, shorter, found = split_job(path, target.encode())
    assert label is not None
    assert found == shorter.encode() + target[len(path) :].encode()
    assert path.endswith(shorter.removeprefix("/"))


def test_a_query_is_no_part_of_a_label() -> None:
    found = split_job("/artifacts-agent/job/a", b"/artifacts-agent/job/a?q=1/v8/artifacts/events")
    assert found == (b"a", "/", b"/?q=1/v8/artifacts/events")


def test_an_absolute_url_has_no_label() -> None:
    path, target = "/artifacts-agent/job/a/v8", b"http://host/artifacts-agent/job/a/v8"
    assert split_job(path, target) == (None, path, target)
