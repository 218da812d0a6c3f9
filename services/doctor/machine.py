"""Checks of this machine: device, model, ports."""

from __future__ import annotations

import errno
import os
import platform
import socket
from collections.abc import Iterator

import torch
import transformers

from headwise.version import __version__
from kvstore.errors import InvalidParameter
from services.doctor.finding import Finding, Level
from services.runtime.model.model_errors import ModelError
from services.runtime.model.model_options import allowed_codecs
from services.runtime.model.served_model import load_config
from services.runtime.process.options import ModelOptions

_DEVICES = ("cpu", "cuda")


def check_machine(options: ModelOptions) -> Iterator[Finding]:
    """Versions, device, model and codecs; weights are not read."""
    yield Finding(
        "versions",
        Level.OK,
        f"headwise {__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}",
    )
    yield _check_device(options.device)
    yield from _check_model(options)
    try:
        allowed = allowed_codecs(options.codecs)
        yield Finding("codecs", Level.OK, ", ".join(allowed))
    except InvalidParameter as error:
        yield Finding("codecs", Level.PROBLEM, str(error), "Choose among them with --codecs.")


def _check_device(name: str) -> Finding:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in _DEVICES:
        return Finding("device", Level.PROBLEM, f"{name!r} is none", "Give --device cpu or cuda.")
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return Finding("device", Level.OK, f"cpu, {threads} threads of {os.cpu_count()} cores")
    if not torch.cuda.is_available():
        advice = "Install the driver and a CUDA build of torch, or give --device cpu."
        return Finding("device", Level.PROBLEM, "torch sees no CUDA device", advice)
    if (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices, and {name} is none of them"
        return Finding("device", Level.PROBLEM, found, "Count from cuda:0.")
    memory_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    found = f"{torch.cuda.get_device_name(device)}, {memory_gib:.0f} GiB"
    return Finding("device", Level.OK, found)


def _check_model(options: ModelOptions) -> Iterator[Finding]:
    try:
        config = load_config(
            options.model,
            revision=options.revision,
            cache_dir=options.model_cache.expanduser(),
        )
    except ModelError as error:
        yield Finding("model", Level.PROBLEM, str(error), "Give another --model.")
        return
    yield Finding(
        "model",
        Level.OK,
        f"{options.model}: {config.model_type}, {config.num_hidden_layers} layers, "
        f"context {config.max_position_embeddings} tokens",
    )
    stored = str(config.dtype).removeprefix("torch.")
    found = f"{options.dtype}, weights stored as {stored}"
    if (stored, options.dtype) == ("bfloat16", "float16"):
        advice = "float16 overflows where bfloat16 does not; give --dtype bfloat16."
        yield Finding("dtype", Level.WARNING, found, advice)
    else:
        yield Finding("dtype", Level.OK, found)


def port_finding(host: str, port: int) -> Finding | None:
    """Return None if a process already listens on the port."""
    subject = f"port {port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            # as a server would: connections that just ended do not count
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        found = f"{host}:{port} cannot be listened on: {error.strerror}"
        return Finding(subject, Level.PROBLEM, found, "Choose another --host or port.")
    return Finding(subject, Level.OK, f"free on {host}")
