"""Client for Headwise, a KV cache service for LLM serving; it does not need torch.

>>> from headwise import Client
>>> with Client("localhost:7080") as client:
...     for delta in client.generate("The capital of France is", max_tokens=8):
...         print(delta.text, end="")
"""

from headwise.async_client import AsyncClient
from headwise.client import Client
from headwise.descriptions import ServiceDescription
from headwise.errors import (
    Cancelled,
    CorruptStream,
    DeadlineExceeded,
    Forbidden,
    HeadwiseError,
    InternalError,
    InvalidRequest,
    NotFound,
    NotSupported,
    Overloaded,
    Refused,
    Unauthenticated,
    Unavailable,
)
from headwise.requests import GenerateOptions, Message, Policy, Prompt, Sampling
from headwise.results import (
    Delta,
    FinishReason,
    HeadReport,
    MemoryReport,
    Result,
    SessionInfo,
    StoredCache,
    Timings,
    TokenLogprobs,
    Usage,
)
from headwise.tls import Tls
from headwise.version import __version__

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "CorruptStream",
    "DeadlineExceeded",
    "Delta",
    "FinishReason",
    "Forbidden",
    "GenerateOptions",
    "HeadReport",
    "HeadwiseError",
    "InternalError",
    "InvalidRequest",
    "MemoryReport",
    "Message",
    "NotFound",
    "NotSupported",
    "Overloaded",
    "Policy",
    "Prompt",
    "Refused",
    "Result",
    "Sampling",
    "ServiceDescription",
    "SessionInfo",
    "StoredCache",
    "Timings",
    "Tls",
    "TokenLogprobs",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "__version__",
]
