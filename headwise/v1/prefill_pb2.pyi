from headwise.v1 import cache_pb2 as _cache_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrefillRequest(_message.Message):
    __slots__ = ("token_ids", "policy", "expected_model", "codec", "keep_for_seconds", "cache_formats")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_MODEL_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    KEEP_FOR_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CACHE_FORMATS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    policy: _cache_pb2.Policy
    expected_model: _cache_pb2.ModelFingerprint
    codec: _cache_pb2.RowCodec
    keep_for_seconds: float
    cache_formats: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., policy: _Optional[_Union[_cache_pb2.Policy, _Mapping]] = ..., expected_model: _Optional[_Union[_cache_pb2.ModelFingerprint, _Mapping]] = ..., codec: _Optional[_Union[_cache_pb2.RowCodec, _Mapping]] = ..., keep_for_seconds: _Optional[float] = ..., cache_formats: _Optional[_Iterable[int]] = ...) -> None: ...

class PrefillResponse(_message.Message):
    __slots__ = ("frame", "progress", "report", "kept")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    frame: _cache_pb2.CacheFrame
    progress: PrefillProgress
    report: PrefillReport
    kept: KeptCache
    def __init__(self, frame: _Optional[_Union[_cache_pb2.CacheFrame, _Mapping]] = ..., progress: _Optional[_Union[PrefillProgress, _Mapping]] = ..., report: _Optional[_Union[PrefillReport, _Mapping]] = ..., kept: _Optional[_Union[KeptCache, _Mapping]] = ...) -> None: ...

class KeptCache(_message.Message):
    __slots__ = ("cache", "refusal")
    CACHE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    cache: _cache_pb2.StoredCache
    refusal: str
    def __init__(self, cache: _Optional[_Union[_cache_pb2.StoredCache, _Mapping]] = ..., refusal: _Optional[str] = ...) -> None: ...

class PrefillProgress(_message.Message):
    __slots__ = ("tokens_done", "tokens_total")
    TOKENS_DONE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    tokens_done: int
    tokens_total: int
    def __init__(self, tokens_done: _Optional[int] = ..., tokens_total: _Optional[int] = ...) -> None: ...

class PrefillReport(_message.Message):
    __slots__ = ("queue_seconds", "prefill_seconds", "profile_seconds", "compact_seconds", "ship_seconds", "reused")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPACT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SHIP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    prefill_seconds: float
    profile_seconds: float
    compact_seconds: float
    ship_seconds: float
    reused: bool
    def __init__(self, queue_seconds: _Optional[float] = ..., prefill_seconds: _Optional[float] = ..., profile_seconds: _Optional[float] = ..., compact_seconds: _Optional[float] = ..., ship_seconds: _Optional[float] = ..., reused: bool = ...) -> None: ...

class PrefillServiceDescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PrefillServiceDescribeResponse(_message.Message):
    __slots__ = ("model", "policies", "default_policy", "limits", "versions")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_POLICY_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    model: _cache_pb2.ModelDescription
    policies: _containers.RepeatedCompositeFieldContainer[_cache_pb2.PolicyDescription]
    default_policy: str
    limits: PrefillLimits
    versions: _cache_pb2.Versions
    def __init__(self, model: _Optional[_Union[_cache_pb2.ModelDescription, _Mapping]] = ..., policies: _Optional[_Iterable[_Union[_cache_pb2.PolicyDescription, _Mapping]]] = ..., default_policy: _Optional[str] = ..., limits: _Optional[_Union[PrefillLimits, _Mapping]] = ..., versions: _Optional[_Union[_cache_pb2.Versions, _Mapping]] = ...) -> None: ...

class PrefillLimits(_message.Message):
    __slots__ = ("max_prompt_tokens", "max_queued_requests", "max_keep_seconds", "codecs")
    MAX_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_KEEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    max_prompt_tokens: int
    max_queued_requests: int
    max_keep_seconds: float
    codecs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, max_prompt_tokens: _Optional[int] = ..., max_queued_requests: _Optional[int] = ..., max_keep_seconds: _Optional[float] = ..., codecs: _Optional[_Iterable[str]] = ...) -> None: ...
