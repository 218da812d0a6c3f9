"""A digest that identifies the weights of a model."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over name, shape, dtype and bytes of all that a checkpoint would hold, by name.

    Tied weights count once. Lower-case hex, the same in every process and on every device.
    """
    with ThreadPoolExecutor(thread_name_prefix="digest") as pool:
        # hashlib releases the interpreter's lock
        digests = list(pool.map(_tensor_digest, *zip(*_tensors(model), strict=True)))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    seen: set[int] = set()
    kept = []
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            kept.append((name, tensor.detach()))
    return kept


def _tensor_digest(name: str, tensor: torch.Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    # as bytes, because numpy has no bfloat16
    flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    digest.update(flat.numpy().data)
    return digest.digest()
