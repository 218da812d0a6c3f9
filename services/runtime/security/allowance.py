"""What one tenant has used of its limits, in this process. Used on the event loop alone."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from headwise.errors import Overloaded
from services.runtime.security.tenants_file import TenantLimits

# streams and bytes come free when some call ends, nobody knows when
_RETRY_SECONDS = 1.0
_MOST_TENANTS = 4096


class Allowance:
    """Tokens are a bucket that a minute fills.

    A prompt needs room for itself, or a full bucket; an answer is taken off as it is made and may
    leave a debt. So what has begun is never cut, and the mean over minutes stays within the limit.
    """

    def __init__(self, limits: TenantLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._streams = 0
        self._bytes = 0
        self._tokens = float(limits.tokens_per_minute)
        self._filled = clock()

    @property
    def idle(self) -> bool:
        """Nothing would be forgotten with it."""
        return not self._streams and self._fill() >= self.limits.tokens_per_minute

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Within this a streaming call runs. Raises `Overloaded`."""
        most = self.limits.streams
        if most and self._streams >= most:
            raise _spent(f"{most} calls of this tenant are running", "TENANT_STREAMS")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def take_prompt(self, tokens: int) -> None:
        """Raises `Overloaded` with the time after which there is room for so many tokens."""
        rate = self.limits.tokens_per_minute
        if not rate:
            return
        missing = min(tokens, rate) - self._fill()
        if missing > 0:
            text = f"this tenant may use {rate} tokens a minute"
            raise _spent(text, "TENANT_TOKENS", missing * 60 / rate)
        self._tokens -= tokens

    def take_answer(self, tokens: int) -> None:
        """What was made is made: never refused."""
        if self.limits.tokens_per_minute:
            self._tokens -= tokens

    @contextlib.contextmanager
    def hold(self, kept: int, more: int) -> Iterator[None]:
        """Within this the tenant holds `more` bytes, beside those `kept` and other calls'.

        Raises `Overloaded` where that is too much.
        """
        most, held = self.limits.bytes, kept + self._bytes
        if most and held + more > most:
            text = f"this tenant may hold {most} bytes: it holds {held}, and asks for {more} more"
            raise _spent(text, "TENANT_BYTES")
        self._bytes += more
        try:
            yield
        finally:
            self._bytes -= more

    def _fill(self) -> float:
        """Tokens in the bucket now."""
        now, rate = self._clock(), self.limits.tokens_per_minute
        self._tokens = min(float(rate), self._tokens + (now - self._filled) * rate / 60)
        self._filled = now
        return self._tokens


class Allowances:
    """One for each tenant that has limits."""

    def __init__(self, limits_of: Callable[[str], TenantLimits]) -> None:
        self._limits_of = limits_of
        self._by_tenant: OrderedDict[str, Allowance] = OrderedDict()

    def of(self, tenant: str) -> Allowance:
        """The tenant's, with its limits as they are now."""
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
        if len(self._by_tenant) >= _MOST_TENANTS:
            idle = [name for name, allowance in self._by_tenant.items() if allowance.idle]
            for name in idle:
                del self._by_tenant[name]


def _spent(text: str, reason: str, retry_seconds: float = _RETRY_SECONDS) -> Overloaded:
    return Overloaded(text, reason, retry_after_seconds=retry_seconds)
