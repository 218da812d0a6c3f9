"""Libraries that the parts need, found by metadata and without an import from elsewhere."""

from __future__ import annotations

import importlib.metadata

# what is imported, the distribution it comes from, and the oldest that serves
NEEDED = (
    ("numpy", "numpy", "2.0"),
    ("torch", "torch", "2.11"),
    ("triton", "triton", "3.6"),
    ("numba", "numba", "0.65"),
    ("transformers", "transformers", "5.17"),
    ("accelerate", "accelerate", "1.10"),
    ("grpc", "grpcio", "1.80"),
    ("google.protobuf", "protobuf", "6.31.1"),
    ("google.rpc.status_pb2", "googleapis-common-protos", "1.5"),
    ("grpc_status", "grpcio-status", "1.80"),
    ("grpc_health.v1", "grpcio-health-checking", "1.80"),
    ("grpc_reflection.v1alpha", "grpcio-reflection", "1.80"),
    ("google_crc32c", "google-crc32c", "1.7"),
    ("jwt", "PyJWT", "2.10"),
    ("cryptography", "cryptography", "40"),
    ("gguf", "gguf", "0.17"),
    ("click", "click", "8.2"),
    ("prometheus_client", "prometheus-client", "0.22"),
    ("yaml", "PyYAML", "6.0"),
    ("rich", "rich", "14"),
    ("safetensors", "safetensors", "0.8"),
    ("pytest", "pytest", "8.4"),
    ("pytest_asyncio", "pytest-asyncio", "1.2"),
    ("pytest_timeout", "pytest-timeout", "2.4"),
    ("xdist", "pytest-xdist", "3.8"),
    ("hypothesis", "hypothesis", "6.140"),
)


def missing() -> list[str]:
    """Return what is missing or too old, by metadata alone: that takes a tenth of a second."""
    found = []
    for _, name, oldest in NEEDED:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is missing")
            continue
        if _numbers(version) < _numbers(oldest):
            found.append(f"{name} {version} is older than {oldest}")
    return found


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts[:3])
