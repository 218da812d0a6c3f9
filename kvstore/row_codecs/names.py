"""The codecs and their spelling."""

from __future__ import annotations

import dataclasses
import enum

from kvstore.errors import InvalidParameter


class ElementCodec(enum.StrEnum):
    """Storage of the D elements of a key or of a value."""

    MODEL = "model"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"


@dataclasses.dataclass(frozen=True, slots=True)
class RowCodec:
    """The codec of a cache's keys and that of its values, chosen independently."""

    keys: ElementCodec = ElementCodec.MODEL
    values: ElementCodec = ElementCodec.MODEL

    @classmethod
    def parse(cls, spelling: str) -> RowCodec:
        """`int8` for both, or `fp8/int4` for keys and values. Raises `InvalidParameter`."""
        parts = spelling.split("/")
        known = {codec.value for codec in ElementCodec}
        if len(parts) > 2 or not known.issuperset(parts):
            raise InvalidParameter(
                "codec", f"{spelling!r} is not one of {', '.join(sorted(known))}, or two with a '/'"
            )
        return cls(ElementCodec(parts[0]), ElementCodec(parts[-1]))

    @property
    def name(self) -> str:
        """The one spelling that names it everywhere."""
        return self.keys.value if self.keys is self.values else f"{self.keys}/{self.values}"


MODEL_ROWS = RowCodec()
"""Rows as the model computes them."""
