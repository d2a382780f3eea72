"""The label of a job in the address that its clients are given: `http://127.0.0.1:9900/artifacts-agent/job/LABEL`.

Clients of the API know no other way to say it: they add the API's paths to the address, and nothing else of theirs is free.
"""

from urllib.parse import quote, unquote_to_bytes

_PREFIX = "/artifacts-agent/job/"


def job_path(job: str) -> str:
    """Return what goes behind the front's address."""
    return f"{_PREFIX}{quote(job, safe='')}"


def split_job(path: str, target: bytes) -> tuple[bytes | None, str, bytes]:
    """Return the label in a request's path, as it was sent, and path and target without it; None if there is none.

    `target` is `path` and what follows it, as a query: in an absolute URL there is no label.
    """
    sent = path.encode()
    if not path.startswith(_PREFIX) or not target.startswith(sent):
        return None, path, target
    label, _, rest = path[len(_PREFIX) :].partition("/")
    return unquote_to_bytes(label), f"/{rest}", b"/" + rest.encode() + target[len(sent) :]


def without_job(url: str) -> str:
    """Return an address without the job in it."""
    return url.partition(_PREFIX)[0]
