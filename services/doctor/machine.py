"""Checks of this machine, the same that a service makes before it starts."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator

import torch
import transformers

from headwise.version import __version__
from services.doctor.finding import Finding, Level
from services.doctor.machine_options import MachineOptions
from services.runtime.model.context_length import context_tokens
from services.runtime.model.model_errors import ModelError
from services.runtime.model.model_options import allowed_codecs
from services.runtime.model.served_model import ExaminedModel, examine_model
from services.runtime.process.options import ModelOptions
from services.runtime.startup.addresses import is_taken, listen_problems
from services.runtime.startup.check_list import (
    link_problems,
    model_problems,
    pool_problems,
    store_problems,
)
from services.runtime.startup.paths import ready_file_problems
from services.runtime.startup.problem import Problem


def check_machine(options: MachineOptions) -> Iterator[Finding]:
    """Versions, device, codecs, paths, sizes and model; the values of weights are not read."""
    yield Finding(
        "versions",
        Level.OK,
        f"headwise {__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}",
    )
    model = options.model
    problems = list(model_problems(model))
    yield from _findings(problems)
    broken = {problem.subject for problem in problems}
    if "device" not in broken:
        yield Finding("device", Level.OK, _device(model.device))
        yield from _findings(pool_problems(options.pool_bytes, 0, model.device))
    if "codecs" not in broken:
        yield Finding("codecs", Level.OK, ", ".join(allowed_codecs(model.codecs)))
    yield from _findings(store_problems(0, options.store_disk))
    yield from _findings(ready_file_problems(options.ready_file))
    yield from _findings(link_problems(options.prefill))
    if "model-cache" not in broken:
        yield from _check_model(model, "dtype" in broken)


def _findings(problems: Iterable[Problem]) -> Iterator[Finding]:
    for problem in problems:
        yield Finding(problem.subject, Level.PROBLEM, problem.found, problem.advice)


def _device(name: str) -> str:
    device = torch.device(name)
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    memory_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{torch.cuda.get_device_name(device)}, {memory_gib:.0f} GiB"


def _check_model(options: ModelOptions, dtype_refused: bool) -> Iterator[Finding]:
    try:
        examined = examine_model(
            options.model,
            revision=options.revision,
            cache_dir=options.model_cache.expanduser(),
        )
    except ModelError as error:
        yield Finding("model", Level.PROBLEM, str(error), "Give another --model.")
        return
    config = examined.config
    yield Finding(
        "model",
        Level.OK,
        f"{options.model}: {config.model_type}, {config.num_hidden_layers} layers, "
        f"context {context_tokens(config)} tokens; its tokenizer loads",
    )
    yield _weights(examined)
    if not dtype_refused:
        yield dtype_finding(options.dtype, str(config.dtype).removeprefix("torch."))


def _weights(examined: ExaminedModel) -> Finding:
    weights = examined.weights
    if weights is None:
        found = "not looked at: on the hub, or no safetensors"
        return Finding("weights", Level.WARNING, found, "Only a start of prefill reads them.")
    files = f"{weights.files} file{'s' * (weights.files > 1)}"
    found = f"{files}, {weights.tensors} tensors of the configured sizes; values not looked at"
    return Finding("weights", Level.OK, found)


def dtype_finding(dtype: str, stored: str) -> Finding:
    """The data type beside that of the stored weights."""
    found = f"{dtype}, weights stored as {stored}"
    if (stored, dtype) == ("bfloat16", "float16"):
        advice = "float16 overflows where bfloat16 does not; give --dtype bfloat16."
        return Finding("dtype", Level.WARNING, found, advice)
    return Finding("dtype", Level.OK, found)


def port_finding(host: str, port: int) -> Finding | None:
    """Return None if a process already listens on the port."""
    if is_taken(host, port):
        return None
    for problem in listen_problems(host, port):
        return Finding(problem.subject, Level.PROBLEM, problem.found, problem.advice)
    return Finding(f"port {port}", Level.OK, f"free on {host}")
