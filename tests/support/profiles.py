"""How long the long tests run: `pytest --hypothesis-profile=nightly` has them run for as long as it takes.

It knows profiles. It must never know a test.
"""

from typing import Final

from hypothesis import HealthCheck, settings

NIGHTLY: Final = "nightly"
HOURS: Final = 3600.0


def register() -> None:
    """Make the nightly profile known; without it, what every commit runs is the default."""
    settings.register_profile(
        NIGHTLY,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def is_nightly() -> bool:
    """Tell whether this is a long run; pytest knows it before it imports the tests."""
    return settings.get_current_profile_name() == NIGHTLY


def seconds(usual: float) -> float:
    """Return the time-out of a test that usually takes less than this."""
    return 6 * HOURS if is_nightly() else usual
