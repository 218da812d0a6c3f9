"""Whose caches a call may see."""

from __future__ import annotations

from typing import Any

import grpc

from headwise.errors import InvalidRequest
from headwise.tenant import TENANT_KEY
from kvstore.content_key import DEFAULT_NAMESPACE, ContentKey
from kvstore.errors import InvalidParameter

_ANY_DIGEST = "0" * 64


def namespace_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The tenant that a call's metadata names. Raises `InvalidRequest` for one that is no name."""
    metadata = context.invocation_metadata() or ()
    named = [value for key, value in metadata if key == TENANT_KEY]
    tenant = named[0] if named else DEFAULT_NAMESPACE
    try:
        if len(named) > 1 or not isinstance(tenant, str):
            raise InvalidParameter("namespace", "must be one text")
        return ContentKey(tenant, _ANY_DIGEST).namespace
    except InvalidParameter as error:
        message = f"{TENANT_KEY}: {str(error).partition(': ')[2]}"
        raise InvalidRequest(message, "INVALID_TENANT", {"field": TENANT_KEY}) from error
