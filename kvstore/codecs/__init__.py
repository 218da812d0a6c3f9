"""Row codecs: how a row of keys or values becomes bytes, and back. See docs/codecs.md."""

from kvstore.codecs.coding import RowCoding
from kvstore.codecs.layout import RowLayout
from kvstore.codecs.names import MODEL_ROWS, ElementCodec, RowCodec
from kvstore.codecs.rows import decode_rows, encode_rows

__all__ = [
    "MODEL_ROWS",
    "ElementCodec",
    "RowCodec",
    "RowCoding",
    "RowLayout",
    "decode_rows",
    "encode_rows",
]
