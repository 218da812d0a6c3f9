"""Pauses between the layers of an arriving cache while sequences run."""

from __future__ import annotations

import asyncio
import time

import pytest

from kvstore.pool import PageCount, SequencePages
from services.decode.memory.intake import Intake


async def _nothing(pages: SequencePages, need: PageCount) -> None:
    raise AssertionError


async def test_an_idle_engine_causes_no_pause() -> None:
    async with asyncio.timeout(0.05):
        await Intake(_nothing, lambda: False).pause(60)


@pytest.mark.parametrize(("worked", "least"), [(0.02, 0.04), (60, 0.1)])
async def test_pauses_are_longer_than_the_work_and_bounded(worked: float, least: float) -> None:
    began = time.perf_counter()
    async with asyncio.timeout(5):
        await Intake(_nothing, lambda: True).pause(worked)
    # the loop's clock may be a little coarser
    assert time.perf_counter() - began >= 0.95 * least
