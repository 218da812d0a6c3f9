"""The use that each tenant makes of its limits in this process, on the event loop alone."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Literal

from headwise.errors import Overloaded
from services.runtime.process import metrics
from services.runtime.security.tenants_file import TenantLimits

# streams and bytes become free at the end of a call, whose time is unknown
_RETRY_SECONDS = 1.0
_MAX_TENANTS = 4096
# limits of what is held, which is given back some time
Held = Literal["streams", "bytes", "sessions", "leases", "stored_bytes"]
_REASONS = {
    "streams": (Overloaded, "TENANT_STREAMS"),
    "tokens_per_minute": (Overloaded, "TENANT_TOKENS"),
    "bytes": (Overloaded, "TENANT_BYTES"),
    "sessions": (Overloaded, "TENANT_SESSIONS"),
    "leases": (Overloaded, "TENANT_LEASES"),
    "stored_bytes": (Overloaded, "TENANT_STORED_BYTES"),
}


class Allowance:
    """The limits of one tenant and its use of them. Tokens are a bucket that fills in a minute.

    A prompt needs as many tokens in the bucket as it has, or a full bucket. Generated tokens are
    charged as they come and may make the bucket negative, so that no running answer is cut and the
    mean over minutes stays within the limit.
    """

    def __init__(self, limits: TenantLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        # by limit, what running calls take
        self._running: Counter[str] = Counter()
        self._tokens = float(limits.tokens_per_minute)
        self._filled = clock()

    @property
    def idle(self) -> bool:
        """Whether this allowance equals a new one and can be dropped."""
        return not self._running.total() and self._fill() >= self.limits.tokens_per_minute

    def stream(self) -> AbstractContextManager[None]:
        """Count a call until the block ends. Raises `Overloaded` at the limit."""
        return self.hold("streams", 0, 1)

    @contextlib.contextmanager
    def hold(self, limit: Held, kept: int, more: int) -> Iterator[None]:
        """Count `more` until the block ends, beside what is `kept` and what other calls take.

        Raises `Overloaded` if the sum exceeds the limit, with the reason `TENANT_…`.
        """
        most, held = getattr(self.limits, limit), kept + self._running[limit]
        if most and more and held + more > most:
            what = limit.replace("_", " ")
            text = f"this tenant may hold {most} {what}: it holds {held}, and asks for {more} more"
            raise _spent(text, limit)
        self._running[limit] += more
        try:
            yield
        finally:
            self._running[limit] -= more

    def require_tokens(self, tokens: int) -> None:
        """Raise `Overloaded`, with the time until the bucket has enough tokens for a prompt."""
        rate = self.limits.tokens_per_minute
        if not rate:
            return
        missing = min(tokens, rate) - self._fill()
        if missing > 0:
            text = f"this tenant may use {rate} tokens a minute"
            raise _spent(text, "tokens_per_minute", missing * 60 / rate)

    def take_prompt(self, tokens: int) -> None:
        """Charge a prompt. Raises what `require_tokens` raises."""
        self.require_tokens(tokens)
        if self.limits.tokens_per_minute:
            self._tokens -= tokens

    def take_answer(self, tokens: int) -> None:
        """Charge generated tokens; the bucket may go negative."""
        if self.limits.tokens_per_minute:
            self._tokens -= tokens

    def _fill(self) -> float:
        """Fill the bucket for the time passed and return its tokens."""
        now, rate = self._clock(), self.limits.tokens_per_minute
        self._tokens = min(float(rate), self._tokens + (now - self._filled) * rate / 60)
        self._filled = now
        return self._tokens


class Allowances:
    """The allowance of each tenant that has limits."""

    def __init__(self, limits_of: Callable[[str], TenantLimits]) -> None:
        self._limits_of = limits_of
        self._by_tenant: OrderedDict[str, Allowance] = OrderedDict()

    def of(self, tenant: str) -> Allowance:
        """Return the tenant's allowance, with its present limits."""
        limits = self._limits_of(tenant)
        if limits == TenantLimits():
            return Allowance(limits)
        allowance = self._by_tenant.get(tenant)
        if allowance is None:
            self._forget_idle()
            allowance = self._by_tenant[tenant] = Allowance(limits)
        self._by_tenant.move_to_end(tenant)
        allowance.limits = limits
        return allowance

    def _forget_idle(self) -> None:
        if len(self._by_tenant) >= _MAX_TENANTS:
            idle = [name for name, allowance in self._by_tenant.items() if allowance.idle]
            for name in idle:
                del self._by_tenant[name]


def _spent(text: str, limit: str, retry_seconds: float = _RETRY_SECONDS) -> Overloaded:
    metrics.TENANT_LIMITS_REACHED.labels(limit).inc()
    kind, reason = _REASONS[limit]
    return kind(text, reason, retry_after_seconds=retry_seconds)
