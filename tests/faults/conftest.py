"""Services slow enough to be caught in every phase."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Pair, running_pair
from tests.faults.phases import CHUNK
from tests.tiny_model import save_tiny_model

LAYERS = 24
# a long prompt needs 24 layers of 2 heads, 8,448 rows of 128 bytes: 52 MB. Two fit, three do not
POOL_BYTES = 140 << 20

PREFILL_ARGUMENTS = (
    *("--chunk-tokens", str(CHUNK)),
    *("--max-queued", "1"),
    *("--threads", "1"),
)
DECODE_ARGUMENTS = (
    *("--pool-bytes", str(POOL_BYTES)),
    *("--max-sequences", "4"),
    *("--max-queued", "0"),
    *("--threads", "1"),
)


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model of many layers."""
    return save_tiny_model(tmp_path_factory.mktemp("slow-model"), layers=LAYERS)


@pytest.fixture(scope="session")
def slow_pair(slow_model: Path) -> Iterator[Pair]:
    """One pair for all tests after which it must be as good as new."""
    with running_pair(str(slow_model), PREFILL_ARGUMENTS, DECODE_ARGUMENTS) as pair:
        yield pair
