from headwise.v1 import cache_pb2 as _cache_pb2
from headwise.v1 import decode_pb2 as _decode_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KeepCacheRequest(_message.Message):
    __slots__ = ("text", "tokens", "chat", "policy", "keep_for_seconds", "codec")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    KEEP_FOR_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    text: str
    tokens: _decode_pb2.TokenIds
    chat: _decode_pb2.ChatMessages
    policy: _cache_pb2.Policy
    keep_for_seconds: float
    codec: _cache_pb2.RowCodec
    def __init__(self, text: _Optional[str] = ..., tokens: _Optional[_Union[_decode_pb2.TokenIds, _Mapping]] = ..., chat: _Optional[_Union[_decode_pb2.ChatMessages, _Mapping]] = ..., policy: _Optional[_Union[_cache_pb2.Policy, _Mapping]] = ..., keep_for_seconds: _Optional[float] = ..., codec: _Optional[_Union[_cache_pb2.RowCodec, _Mapping]] = ...) -> None: ...

class KeepCacheResponse(_message.Message):
    __slots__ = ("cache", "reused")
    CACHE_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    cache: _cache_pb2.StoredCache
    reused: bool
    def __init__(self, cache: _Optional[_Union[_cache_pb2.StoredCache, _Mapping]] = ..., reused: bool = ...) -> None: ...

class FetchCacheRequest(_message.Message):
    __slots__ = ("handle", "release", "cache_formats")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    CACHE_FORMATS_FIELD_NUMBER: _ClassVar[int]
    handle: str
    release: bool
    cache_formats: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, handle: _Optional[str] = ..., release: bool = ..., cache_formats: _Optional[_Iterable[int]] = ...) -> None: ...

class FetchCacheResponse(_message.Message):
    __slots__ = ("frame",)
    FRAME_FIELD_NUMBER: _ClassVar[int]
    frame: _cache_pb2.CacheFrame
    def __init__(self, frame: _Optional[_Union[_cache_pb2.CacheFrame, _Mapping]] = ...) -> None: ...

class DescribeCacheRequest(_message.Message):
    __slots__ = ("handle",)
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    handle: str
    def __init__(self, handle: _Optional[str] = ...) -> None: ...

class DescribeCacheResponse(_message.Message):
    __slots__ = ("cache",)
    CACHE_FIELD_NUMBER: _ClassVar[int]
    cache: _cache_pb2.StoredCache
    def __init__(self, cache: _Optional[_Union[_cache_pb2.StoredCache, _Mapping]] = ...) -> None: ...

class RenewLeaseRequest(_message.Message):
    __slots__ = ("handle", "keep_for_seconds")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FOR_SECONDS_FIELD_NUMBER: _ClassVar[int]
    handle: str
    keep_for_seconds: float
    def __init__(self, handle: _Optional[str] = ..., keep_for_seconds: _Optional[float] = ...) -> None: ...

class RenewLeaseResponse(_message.Message):
    __slots__ = ("cache",)
    CACHE_FIELD_NUMBER: _ClassVar[int]
    cache: _cache_pb2.StoredCache
    def __init__(self, cache: _Optional[_Union[_cache_pb2.StoredCache, _Mapping]] = ...) -> None: ...

class ReleaseLeaseRequest(_message.Message):
    __slots__ = ("handle",)
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    handle: str
    def __init__(self, handle: _Optional[str] = ...) -> None: ...

class ReleaseLeaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
