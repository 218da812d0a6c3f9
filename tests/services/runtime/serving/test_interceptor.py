"""Whether any call runs."""

from __future__ import annotations

import asyncio

from services.runtime.security.authentication import Authentication
from services.runtime.security.security_options import SecurityOptions
from services.runtime.serving.interceptor import StatusInterceptor

_QUIET = 0.05


async def test_quiet_returns_after_a_call_and_a_pause() -> None:
    calls = StatusInterceptor(Authentication(SecurityOptions()))
    quiet = asyncio.create_task(calls.quiet(_QUIET))
    await asyncio.sleep(2 * _QUIET)
    assert not quiet.done(), "nothing has run yet"
    for _ in range(5):
        with calls._counted("Generate"):
            await asyncio.sleep(0)
        await asyncio.sleep(_QUIET / 5)
    assert not quiet.done(), "calls follow one another"
    with calls._counted("Generate"):
        await asyncio.sleep(3 * _QUIET)
        assert not quiet.done(), "one is running"
    async with asyncio.timeout(5):
        await quiet
    again = asyncio.create_task(calls.quiet(_QUIET))
    await asyncio.sleep(2 * _QUIET)
    assert not again.done(), "nothing has run since"
    again.cancel()
