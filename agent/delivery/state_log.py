"""What the log says of delivery when its state changes."""

import structlog

from agent.delivery import policy
from agent.delivery.policy import DeliverySettings, DeliveryState, Paused

_FOREVER = float("inf")


def log_pause(old: Paused | None, new: Paused | None, now: float) -> None:
    """Say that delivery pauses, or goes on. `now` is the steady clock's."""
    log = structlog.get_logger("agent.delivery")
    if new is not None:
        wait = round(new.until - now, 1) if new.until != _FOREVER else None
        log.warning("delivery_paused", reason=new.reason, message=new.message, probe_in=wait)
    elif old is not None:
        log.info("delivery_resumed", after=old.reason)


def log_trouble(old: DeliveryState, new: DeliveryState, settings: DeliverySettings, now: float) -> None:
    """Say that requests begin to fail, or fail no more, or that batches have to be smaller. `now` is the steady clock's."""
    log = structlog.get_logger("agent.delivery")
    before, after = policy.is_in_trouble(old), policy.is_in_trouble(new)
    if after and not before:
        log.warning("delivery_backing_off", error=new.last_failure, retry_in=round(new.retry_at - now, 1))
    elif before and not after and new.paused is None:
        log.info("delivery_recovered", failures=old.failures)
    if new.sizes.bad != old.sizes.bad:
        most, limit = (policy.batch_limit(state, settings, now) for state in (old, new))
        if limit.events < most.events or limit.bytes < most.bytes:
            facts = {"max_events": limit.events, "max_bytes": limit.bytes, "error": new.sizes.message}
            log.warning("batches_too_large", **facts)
