"""The parts of configuration that prefill and decode share."""

from __future__ import annotations

import dataclasses
import pathlib

from services.runtime.process.configuration import setting

MODEL_CACHE = pathlib.Path("~/.cache/headwise/models")


@dataclasses.dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, how and where."""

    model: str = setting(
        "smollm2",
        "Model to serve: a hub id, a local folder, a GGUF file, or smollm2 (in the test package).",
    )
    revision: str = setting("", "Revision of a hub model; empty for its default.")
    dtype: str = setting(
        "float32", "Dtype of weights and cache.", choices=("float32", "bfloat16", "float16")
    )
    device: str = setting("cpu", "Device to compute on: cpu or cuda.")
    codecs: str = setting(
        "model,fp8,int8,int4",
        "Row codecs a request may ask for, with commas; model is always one of them.",
    )
    threads: int = setting(0, "CPU threads for the model; 0 lets torch choose.", minimum=0)
    model_cache: pathlib.Path = setting(MODEL_CACHE, "Folder where converted models are kept.")


@dataclasses.dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the process meets the world."""

    host: str = setting("127.0.0.1", "Address to listen on.")
    metrics_port: int = setting(
        0, "Port of /metrics; 0 takes a free one.", minimum=0, maximum=65535
    )
    drain_seconds: float = setting(
        30.0, "On SIGTERM, seconds given to running calls before they are cut.", minimum=0
    )
    log_level: str = setting(
        "INFO", "Least severe log line written.", choices=("DEBUG", "INFO", "WARNING", "ERROR")
    )
    log_format: str = setting("text", "Form of log lines.", choices=("text", "json"))
    ready_file: str = setting(
        "", "File that receives the ports as JSON once the process serves; empty for none."
    )
