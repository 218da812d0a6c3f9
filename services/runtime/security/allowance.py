"""The use that each tenant makes of its limits in this process, on the event loop alone."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from headwise.errors import Overloaded
from services.runtime.security.tenants_file import TenantLimits

# streams and bytes become free at the end of a call, whose time is unknown
_RETRY_SECONDS = 1.0
_MAX_TENANTS = 4096


class Allowance:
    """The streams, bytes and tokens of one tenant. Tokens are a bucket that fills in one minute.

    A prompt needs as many tokens in the bucket as it has, or a full bucket. Generated tokens are
    charged as they come and may make the bucket negative, so that no running answer is cut and the
    mean over minutes stays within the limit.
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
        """Whether this allowance equals a new one and can be dropped."""
        return not self._streams and self._fill() >= self.limits.tokens_per_minute

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Count a streaming call until the block ends. Raises `Overloaded` at the limit."""
        max_streams = self.limits.streams
        if max_streams and self._streams >= max_streams:
            raise _spent(f"{max_streams} calls of this tenant are running", "TENANT_STREAMS")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def take_prompt(self, tokens: int) -> None:
        """Charge a prompt. Raises `Overloaded` with the time until the bucket has enough tokens."""
        rate = self.limits.tokens_per_minute
        if not rate:
            return
        missing = min(tokens, rate) - self._fill()
        if missing > 0:
            text = f"this tenant may use {rate} tokens a minute"
            raise _spent(text, "TENANT_TOKENS", missing * 60 / rate)
        self._tokens -= tokens

    def take_answer(self, tokens: int) -> None:
        """Charge generated tokens; the bucket may go negative."""
        if self.limits.tokens_per_minute:
            self._tokens -= tokens

    @contextlib.contextmanager
    def hold(self, kept: int, more: int) -> Iterator[None]:
        """Count `more` bytes until the block ends, beside `kept` bytes and those of other calls.

        Raises `Overloaded` if the sum exceeds the limit.
        """
        max_bytes, held = self.limits.bytes, kept + self._bytes
        if max_bytes and held + more > max_bytes:
            text = (
                f"this tenant may hold {max_bytes} bytes: it holds {held}, and asks for {more} more"
            )
            raise _spent(text, "TENANT_BYTES")
        self._bytes += more
        try:
            yield
        finally:
            self._bytes -= more

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


def _spent(text: str, reason: str, retry_seconds: float = _RETRY_SECONDS) -> Overloaded:
    return Overloaded(text, reason, retry_after_seconds=retry_seconds)
