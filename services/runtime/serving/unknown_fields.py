"""Refusal of requests with fields that this version does not know."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

import headwise
from headwise.errors import NotSupported


def require_known(request: Message) -> None:
    """Raise `NotSupported` naming the first field, at any depth, that the contract here lacks."""
    unknown = next(_unknown(request, ""), None)
    if unknown is not None:
        raise NotSupported(
            f"field {unknown} is not known to this server, Headwise {headwise.__version__}",
            "UNKNOWN_FIELD",
            {"field": unknown},
        )


def _unknown(message: Message, path: str) -> Iterator[str]:
    """Yield unknown fields as the path of names with the field's number."""
    fields = UnknownFieldSet(message)
    yield from (f"{path}{fields[place].field_number}" for place in range(len(fields)))
    for field, value in message.ListFields():
        kind = field.message_type
        # in all requests here the values of maps are scalars
        if kind is None or kind.GetOptions().map_entry:
            continue
        if field.is_repeated:
            for place, item in enumerate(value):
                yield from _unknown(item, f"{path}{field.name}[{place}].")
        else:
            yield from _unknown(value, f"{path}{field.name}.")
