"""The messages of a prefill service for a prompt, made without running one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from headwise.v1 import prefill_pb2
from kvstore.cache import RaggedLayer
from kvstore.policies import parse_policy
from kvstore.wire import CacheEncoder, Frame
from services.prefill.compute.prefiller import Prefiller
from services.prefill.job import PrefillJob
from services.runtime.model.served_model import ServedModel
from services.runtime.serving.frames import fill_frame


def record(
    served: ServedModel,
    token_ids: Sequence[int],
    policy: str,
    parameters: Mapping[str, object] | None = None,
) -> list[bytes]:
    """Header, layers, a report and the trailer, as serialized messages."""
    job = PrefillJob(tuple(token_ids), parse_policy(policy, parameters or {}))
    encoder = CacheEncoder(job.header(served))
    frames = [encoder.header()]

    def emit(index: int, layer: RaggedLayer) -> None:
        frames.extend(encoder.layer(index, layer))

    Prefiller(
        served,
        job.token_ids,
        job.policy,
        chunk_tokens=1024,
        emit=emit,
        progress=lambda done: None,
        stop=threading.Event(),
    ).run()
    report = prefill_pb2.PrefillResponse(report=prefill_pb2.PrefillReport(prefill_seconds=0.5))
    body = [message_of(frame) for frame in frames]
    return [*body, report.SerializeToString(), message_of(encoder.trailer())]


def message_of(frame: Frame) -> bytes:
    response = prefill_pb2.PrefillResponse()
    fill_frame(response.frame, frame)
    return response.SerializeToString()
