"""The job that a prefill request asks for, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from headwise.errors import InvalidRequest
from headwise.v1 import prefill_pb2
from kvstore.cache import Fingerprint, canonical_json, digest_tokens, lowest_format
from kvstore.policies import Policy
from kvstore.row_codecs import MODEL_ROWS, ElementCodec, RowCodec
from kvstore.wire import CacheHeader
from services.runtime.model.served_model import ServedModel
from services.runtime.serving.cache_formats import require_read
from services.runtime.serving.convert import codec_from_proto, model_from_proto, policy_from_proto
from services.runtime.serving.prompt import check_tokens
from services.runtime.serving.prompt_size import require_fit, require_small_policy


@dataclasses.dataclass(frozen=True, slots=True)
class PrefillJob:
    """Tokens to cache, the policy that compacts their cache, and the codec of the kept rows."""

    token_ids: tuple[int, ...]
    policy: Policy
    codec: RowCodec = MODEL_ROWS

    @property
    def format_version(self) -> int:
        """The format version of the cache that this job makes."""
        return lowest_format(self.codec, weighted=self.policy.weighs_rows)

    def header(self, served: ServedModel) -> CacheHeader:
        """The header of the cache this job makes."""
        fingerprint = Fingerprint(
            model=served.fingerprint,
            token_digest=digest_tokens(self.token_ids),
            policy=self.policy.name,
            policy_parameters=canonical_json(self.policy.parameters()),
        )
        coded = fingerprint.coded_as(self.codec, weighted=self.policy.weighs_rows)
        return CacheHeader(coded, served.shapes, len(self.token_ids))


def parse_job(
    request: prefill_pb2.PrefillRequest,
    served: ServedModel,
    *,
    default_policy: str,
    max_prompt_tokens: int,
    codecs: Sequence[ElementCodec] = tuple(ElementCodec),
) -> PrefillJob:
    """Return the checked job. Raises the typed error of the first invalid field."""
    if request.HasField("expected_model"):
        model_from_proto(request.expected_model).require_same(served.fingerprint)
    require_fit(len(request.token_ids), "token_ids", max_prompt_tokens)
    require_small_policy(request.policy)
    token_ids = tuple(request.token_ids)
    if not token_ids:
        raise InvalidRequest("the prompt has no tokens", "EMPTY_PROMPT", {"field": "token_ids"})
    check_tokens(token_ids, "token_ids", served.vocabulary_size, max_prompt_tokens)
    policy = policy_from_proto(request.policy, default_policy)
    job = PrefillJob(token_ids, policy, codec_from_proto(request.codec, codecs))
    require_read(job.format_version, request.cache_formats)
    return job
