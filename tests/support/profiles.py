"""How long the long tests run: `pytest --hypothesis-profile=nightly` has them run for as long as it takes.

No profile has a deadline: how long an example takes says more about the machine than about the code.
"""

from typing import Final

from hypothesis import HealthCheck, settings

USUAL: Final = "usual"
NIGHTLY: Final = "nightly"
HOURS: Final = 3600.0


def register() -> None:
    """Register both profiles and load the usual one; pytest's option comes later and prevails."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    preset = settings.get_profile(settings.get_current_profile_name())  # Hypothesis has one for CI, without chance
    settings.register_profile(USUAL, preset, deadline=None, print_blob=True, suppress_health_check=slow)
    settings.register_profile(NIGHTLY, deadline=None, print_blob=True, suppress_health_check=slow)
    settings.load_profile(USUAL)


def is_nightly() -> bool:
    """Tell whether this is a long run; pytest knows it before it imports the tests."""
    return settings.get_current_profile_name() == NIGHTLY


def seconds(usual: float) -> float:
    """Return the time-out of a test that hangs if it takes longer than this, but for a long run."""
    return 6 * HOURS if is_nightly() else usual
