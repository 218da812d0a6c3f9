from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FrameKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_KIND_UNSPECIFIED: _ClassVar[FrameKind]
    FRAME_KIND_HEADER: _ClassVar[FrameKind]
    FRAME_KIND_INDEX: _ClassVar[FrameKind]
    FRAME_KIND_KEYS: _ClassVar[FrameKind]
    FRAME_KIND_VALUES: _ClassVar[FrameKind]
    FRAME_KIND_POSITIONS: _ClassVar[FrameKind]
    FRAME_KIND_SCORES: _ClassVar[FrameKind]
    FRAME_KIND_FLAGS: _ClassVar[FrameKind]
    FRAME_KIND_TRAILER: _ClassVar[FrameKind]
    FRAME_KIND_LOG_WEIGHTS: _ClassVar[FrameKind]
FRAME_KIND_UNSPECIFIED: FrameKind
FRAME_KIND_HEADER: FrameKind
FRAME_KIND_INDEX: FrameKind
FRAME_KIND_KEYS: FrameKind
FRAME_KIND_VALUES: FrameKind
FRAME_KIND_POSITIONS: FrameKind
FRAME_KIND_SCORES: FrameKind
FRAME_KIND_FLAGS: FrameKind
FRAME_KIND_TRAILER: FrameKind
FRAME_KIND_LOG_WEIGHTS: FrameKind

class CacheFrame(_message.Message):
    __slots__ = ("kind", "layer", "offset", "payload", "checksum")
    KIND_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    kind: FrameKind
    layer: int
    offset: int
    payload: bytes
    checksum: int
    def __init__(self, kind: _Optional[_Union[FrameKind, str]] = ..., layer: _Optional[int] = ..., offset: _Optional[int] = ..., payload: _Optional[bytes] = ..., checksum: _Optional[int] = ...) -> None: ...

class ModelFingerprint(_message.Message):
    __slots__ = ("model_id", "revision", "weights_digest", "tokenizer_digest", "dtype")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    revision: str
    weights_digest: str
    tokenizer_digest: str
    dtype: str
    def __init__(self, model_id: _Optional[str] = ..., revision: _Optional[str] = ..., weights_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., dtype: _Optional[str] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("name", "parameters")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameters: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., parameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class PolicyDescription(_message.Message):
    __slots__ = ("name", "defaults", "preset_of")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    PRESET_OF_FIELD_NUMBER: _ClassVar[int]
    name: str
    defaults: _struct_pb2.Struct
    preset_of: str
    def __init__(self, name: _Optional[str] = ..., defaults: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., preset_of: _Optional[str] = ...) -> None: ...

class LayerShape(_message.Message):
    __slots__ = ("kv_heads", "query_heads", "head_size", "sliding_window")
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    QUERY_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    SLIDING_WINDOW_FIELD_NUMBER: _ClassVar[int]
    kv_heads: int
    query_heads: int
    head_size: int
    sliding_window: int
    def __init__(self, kv_heads: _Optional[int] = ..., query_heads: _Optional[int] = ..., head_size: _Optional[int] = ..., sliding_window: _Optional[int] = ...) -> None: ...

class ModelDescription(_message.Message):
    __slots__ = ("fingerprint", "architecture", "context_tokens", "vocabulary_size", "layers")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: ModelFingerprint
    architecture: str
    context_tokens: int
    vocabulary_size: int
    layers: _containers.RepeatedCompositeFieldContainer[LayerShape]
    def __init__(self, fingerprint: _Optional[_Union[ModelFingerprint, _Mapping]] = ..., architecture: _Optional[str] = ..., context_tokens: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., layers: _Optional[_Iterable[_Union[LayerShape, _Mapping]]] = ...) -> None: ...

class Versions(_message.Message):
    __slots__ = ("headwise", "torch", "transformers", "cache_formats")
    HEADWISE_FIELD_NUMBER: _ClassVar[int]
    TORCH_FIELD_NUMBER: _ClassVar[int]
    TRANSFORMERS_FIELD_NUMBER: _ClassVar[int]
    CACHE_FORMATS_FIELD_NUMBER: _ClassVar[int]
    headwise: str
    torch: str
    transformers: str
    cache_formats: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, headwise: _Optional[str] = ..., torch: _Optional[str] = ..., transformers: _Optional[str] = ..., cache_formats: _Optional[_Iterable[int]] = ...) -> None: ...

class StoredCache(_message.Message):
    __slots__ = ("handle", "key", "tokens", "cache_bytes", "expires_in_seconds", "policy", "codec")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    handle: str
    key: str
    tokens: int
    cache_bytes: int
    expires_in_seconds: float
    policy: Policy
    codec: RowCodec
    def __init__(self, handle: _Optional[str] = ..., key: _Optional[str] = ..., tokens: _Optional[int] = ..., cache_bytes: _Optional[int] = ..., expires_in_seconds: _Optional[float] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., codec: _Optional[_Union[RowCodec, _Mapping]] = ...) -> None: ...

class RowCodec(_message.Message):
    __slots__ = ("keys", "values")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    keys: str
    values: str
    def __init__(self, keys: _Optional[str] = ..., values: _Optional[str] = ...) -> None: ...
