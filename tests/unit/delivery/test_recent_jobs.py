"""The labels of the jobs whose events came last are known, and no more of them than memory is to hold."""

from agent.delivery.recent_jobs import MOST, RecentJobs


def test_a_job_is_known_from_its_first_event_on() -> None:
    jobs = RecentJobs()
    jobs.note(None)
    jobs.note("a")
    assert ("a" in jobs, "b" in jobs, "" in jobs) == (True, False, False)


def test_only_the_newest_labels_are_remembered() -> None:
    jobs = RecentJobs()
    for label in ("old", "lasting", *map(str, range(MOST - 2)), "lasting", "new"):
        jobs.note(label)
    assert ("old" in jobs, "lasting" in jobs, "0" in jobs, "new" in jobs) == (False, True, True, True)
