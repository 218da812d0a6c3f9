"""Wrong starts because of options: devices, sizes, addresses, paths, files, the environment."""

from __future__ import annotations

from pathlib import Path

from tests.services.startup.wrong_start import Damage, WrongStart

_MODEL = ("--model", "{model}")
_HUGE = str(1 << 50)


def _of(name: str, *arguments: str, says: tuple[str, ...], command: str = "prefill") -> WrongStart:
    return WrongStart(name, (*_MODEL, *arguments), says, command=command)


def _in(name: str, says: tuple[str, ...], command: str = "prefill", **variables: str) -> WrongStart:
    return WrongStart(name, _MODEL, says, command=command, environment=variables)


def _file(name: str, text: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_text(text)

    return damage


DEVICES = (
    _of("a device that does not exist", "--device", "tpu", says=("--device tpu", "cpu or cuda")),
    _of("a device in no words", "--device", "", says=("--device", "cpu or cuda")),
    _of("meta", "--device", "meta", says=("--device meta", "cpu or cuda"), command="decode"),
    _of("a CUDA device that is not there", "--device", "cuda:99", says=("--device cuda:99",)),
    _of("float16 on a CPU", "--dtype", "float16", says=("--dtype float16", "bfloat16")),
    _of("an unknown type", "--dtype", "int8", says=("--dtype", "float32")),
    _of("threads by the million", "--threads", "1000000", says=("--threads", "cores")),
    _of("an unknown codec", "--codecs", "int3", says=("--codecs", "int3", "int8")),
    _of("an unknown policy", "--default-policy", "best", says=("--default-policy", "lookback")),
    _of("graphs without a GPU", "--cuda-graphs", "on", says=("--cuda-graphs",), command="decode"),
)

SIZES = (
    _of("a pool beyond the machine", "--pool-bytes", _HUGE, says=("--pool-bytes", "smaller"),
        command="decode"),
    _of("a store beyond the machine", "--store-memory-bytes", _HUGE,
        says=("--store-memory-bytes", "smaller")),
    _of("swap beyond the machine", "--swap-bytes", _HUGE, says=("--swap-bytes",),
        command="decode"),
    _of("sequences by the billion", "--max-sequences", "2000000000",
        says=("--max-sequences", "memory"), command="decode"),
    _of("a pool in words", "--pool-bytes", "plenty", says=("--pool-bytes", "plenty"),
        command="decode"),
    _of("a negative limit", "--max-queued", "-1", says=("--max-queued",)),
)  # fmt: skip

ADDRESSES = (
    _of("another machine's address", "--host", "192.0.2.1", says=("--host 192.0.2.1", "0.0.0.0")),
    _of("a host without an address", "--host", "no.such.host.invalid", says=("--host", "resolved")),
    _of("a host with a port", "--host", "127.0.0.1:80", says=("--host",)),
    _of("a port that is none", "--port", "65536", says=("--port",)),
    _of("a port that is taken", "--port", "{taken}", says=("--port {taken}", "another")),
    _of("a taken metrics port", "--metrics-port", "{taken}", says=("--metrics-port {taken}",)),
    _of("a taken health port", "--health-port", "{taken}", says=("--health-port {taken}",)),
    _of("prefill with http", "--prefill", "http://127.0.0.1:7081",
        says=("--prefill", "no http://", "127.0.0.1:7081"), command="decode"),
    _of("prefill without a port", "--prefill", "localhost", says=("--prefill", "port is missing"),
        command="decode"),
    _of("prefill without anything", "--prefill", "", says=("--prefill", "empty"), command="decode"),
    _of("prefill with a path", "--prefill", "h:7081/x", says=("--prefill", "path"),
        command="decode"),
    _of("prefill on a port in words", "--prefill", "h:http", says=("--prefill", "'http'"),
        command="decode"),
    _of("a prefill that is another service", "--prefill", "{stranger}",
        says=("--prefill {stranger}", "another service"), command="decode"),
    _of("Redis by another scheme", "--store-redis", "http://127.0.0.1:6379",
        says=("--store-redis", "redis://")),
    _of("Redis without a scheme", "--store-redis", "127.0.0.1:6379", says=("--store-redis",)),
    _of("Redis on a port in words", "--store-redis", "redis://h:port", says=("--store-redis",)),
    _of("Mooncake without its metadata", "--store-mooncake", "h:50051",
        says=("--store-mooncake", "metadata=URL")),
)  # fmt: skip

PATHS = (
    _of("a model cache that is a file", "--model-cache", "{file}", says=("--model-cache", "file")),
    WrongStart(
        "a model cache that cannot be written",
        ("--model", "{model}/a.gguf", "--model-cache", "/proc/headwise"),
        ("--model-cache /proc/headwise", "written"),
        _file("a.gguf", "GGUF"),
    ),
    _of("a ready file in no folder", "--ready-file", "{folder}/no/ready.json",
        says=("--ready-file", "no folder")),
    _of("a ready file that is a folder", "--ready-file", "{folder}", says=("--ready-file",),
        command="decode"),
    _of("a ready file that cannot be written", "--ready-file", "/proc/ready.json",
        says=("--ready-file", "written")),
    _of("a store on a file", "--store-disk", "{file}", says=("--store-disk", "file")),
    _of("a store that cannot be written", "--store-disk", "/proc/store", says=("--store-disk",)),
    _of("a certificate without its key", "--tls-certificate", "{file}", says=("--tls-key",)),
    _of("a certificate that is none", "--tls-certificate", "{file}", "--tls-key", "{file}",
        says=("PEM",)),
    _of("a certificate that is missing", "--tls-certificate", "/no/c", "--tls-key", "/no/k",
        says=("/no/c",)),
    _of("tokens that are no TOML", "--tokens", "{file}", says=("--tokens", "TOML")),
    _of("keys that are none", "--jwt-keys", "{file}", says=("--jwt-keys",)),
    _of("a token of two words", "--prefill-token", "{file}", says=("--prefill-token",),
        command="decode"),
    _of("authorities that are none", "--prefill-ca", "{file}", says=("{file}",), command="decode"),
    _of("a Redis password that is missing", "--store-redis", "redis://127.0.0.1:1",
        "--store-redis-password", "/no/password", says=("--store-redis-password",)),
    _of("a configuration that is missing", "--config", "/no/such.toml", says=("/no/such.toml",)),
    _of("a configuration of another kind", "--config", "{file}", says=("ends in",)),
    WrongStart("a configuration that is no TOML", ("--config", "{model}/c.toml"), ("no TOML",),
               _file("c.toml", "=")),
    WrongStart("a name that no option has", ("--config", "{model}/c.toml"), ("prot",),
               _file("c.toml", "prot = 1")),
)  # fmt: skip

TWICE = (
    _of("one port for two things", "--port", "{free}", "--metrics-port", "{free}",
        says=("--metrics-port {free}", "--port")),
    _of("one port for health and calls", "--port", "{free}", "--health-port", "{free}",
        says=("--health-port {free}", "--port"), command="decode"),
    _of("a home that does not exist", "--model-cache", "~nobody-has-this-name/models",
        says=("--model-cache", "no home folder")),
)  # fmt: skip

ENVIRONMENT = (
    _in("a variable that is misspelt", ("HEADWISE_PROT",), HEADWISE_PROT="1"),
    _in("a value that is no number", ("HEADWISE_PORT", "many"), HEADWISE_PORT="many"),
    _in("a device by a variable", ("--device tpu",), HEADWISE_DEVICE="tpu"),
    _in("a pool by a variable", ("--pool-bytes",), "decode", HEADWISE_POOL_BYTES=_HUGE),
    _in("an address by a variable", ("--prefill",), "decode", HEADWISE_PREFILL="http://h:1"),
    _in("a configuration by a variable", ("/no/c.toml",), HEADWISE_CONFIG="/no/c.toml"),
)

WRONG_OPTIONS = (*DEVICES, *SIZES, *ADDRESSES, *PATHS, *TWICE, *ENVIRONMENT)
