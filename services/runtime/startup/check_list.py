"""Everything that can be looked at before weights are read, the cheapest first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvstore.errors import InvalidParameter
from services.runtime.model.model_options import allowed_codecs
from services.runtime.process.options import ModelOptions, ServerOptions
from services.runtime.startup.addresses import listen_problems, target_problems
from services.runtime.startup.device import device_problems, dtype_problems, thread_problems
from services.runtime.startup.memory import device_memory_bytes, host_memory_bytes, size_problems
from services.runtime.startup.paths import (
    folder_problems,
    readable_folder_problems,
    ready_file_problems,
)
from services.runtime.startup.problem import Problem


def model_problems(options: ModelOptions) -> Iterator[Problem]:
    """Problems of the options of the model, apart from the model itself."""
    yield from device_problems(options.device)
    yield from dtype_problems(options.dtype, options.device)
    yield from thread_problems(options.threads)
    yield from codec_problems(options.codecs)
    yield from readable_folder_problems("--model-cache", options.model_cache)


def codec_problems(codecs: str) -> Iterator[Problem]:
    """Problems of `--codecs`."""
    try:
        allowed_codecs(codecs)
    except InvalidParameter as error:
        yield Problem("codecs", f"--codecs: {error}", "Give some of model, fp8, int8, int4.")


def server_problems(options: ServerOptions, port: int, health_port: int) -> Iterator[Problem]:
    """Problems of the addresses that a server listens on, and of its ready file."""
    yield from ready_file_problems(options.ready_file)
    ports = {"--port": port, "--metrics-port": options.metrics_port, "--health-port": health_port}
    # 0 takes a free port, and -1 opens none
    fixed = {flag: number for flag, number in ports.items() if number > 0}
    for flag, number in fixed.items():
        twice = next(other for other, taken in fixed.items() if taken == number)
        if twice != flag:
            found = f"{flag} {number}: {twice} is the same"
            yield Problem(flag[2:], found, f"Choose another {flag}.")
        yield from listen_problems(options.host, number, flag)


def store_problems(memory_bytes: int, folder: str) -> Iterator[Problem]:
    """Problems of the tiers in memory and on disk."""
    yield from size_problems("--store-memory-bytes", memory_bytes, host_memory_bytes())
    if folder:
        yield from folder_problems("--store-disk", Path(folder))


def pool_problems(pool_bytes: int, swap_bytes: int, device: str) -> Iterator[Problem]:
    """Problems of decode's memory, on a device that `device_problems` passes."""
    yield from size_problems("--pool-bytes", pool_bytes, device_memory_bytes(device))
    yield from size_problems("--swap-bytes", swap_bytes, host_memory_bytes())


def link_problems(prefill: str) -> Iterator[Problem]:
    """Problems of the address of prefill."""
    yield from target_problems("--prefill", prefill)
