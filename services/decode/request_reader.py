"""Reads a Generate request as a checked generation that fits the pool."""

from __future__ import annotations

from headwise.errors import InvalidRequest
from headwise.v1 import decode_pb2
from kvstore.pool import PagePool
from services.decode.generation import GenerationLimits, GenerationSpec, parse_generation
from services.decode.origin import Origin
from services.runtime.model.served_model import ServedModel
from services.runtime.security.identity import current_tenant
from services.runtime.serving.fair_threads import FairThreads
from services.runtime.serving.prompt_size import PromptSize, count_prompt
from services.runtime.serving.unknown_fields import require_known


class RequestReader:
    """Reads requests under the limits of this process."""

    def __init__(self, served: ServedModel, limits: GenerationLimits, pool: PagePool) -> None:
        self._served = served
        self._limits = limits
        self._pool = pool
        self._threads = FairThreads()

    def count(self, request: decode_pb2.GenerateRequest) -> PromptSize:
        """Return the size of the prompt. Raises `InvalidRequest` if it cannot fit."""
        longest, most = self._served.tokenizer.longest_token, self._limits.max_sequence_tokens - 1
        return count_prompt(request, longest, most)

    async def read(
        self, request: decode_pb2.GenerateRequest, size: PromptSize, origin: Origin
    ) -> GenerationSpec:
        """Return what the request asks for. Raises the typed error of its first fault.

        A prompt that is not small is rendered and tokenized in a thread.
        """
        if size.small:
            return self._read(request, origin)
        return await self._threads.run(current_tenant(), lambda: self._read(request, origin))

    def _read(self, request: decode_pb2.GenerateRequest, origin: Origin) -> GenerationSpec:
        require_known(request)
        spec = parse_generation(request, self._served, self._limits, origin.held)
        self._require_fit(spec, origin)
        return spec

    def _require_fit(self, spec: GenerationSpec, origin: Origin) -> None:
        """Raise `InvalidRequest` if the sequence could outgrow an empty pool.

        The bound assumes that every head keeps all rows.
        """
        pool = self._pool
        needed = pool.bound(spec.final_tokens, origin.codec(spec))
        if needed.rows > pool.pages or needed.metadata > pool.metadata_pages:
            raise InvalidRequest(
                f"{spec.final_tokens} tokens need {needed.rows} pages, the pool has {pool.pages}",
                "SEQUENCE_TOO_LONG",
                {"field": "max_tokens"},
            )
