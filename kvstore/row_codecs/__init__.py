"""Row codecs: how a row of keys or values becomes bytes, and back. See docs/codecs.md."""

from kvstore.row_codecs.key_value_layout import KeyValueLayout
from kvstore.row_codecs.layout import RowLayout
from kvstore.row_codecs.names import MODEL_ROWS, ElementCodec, RowCodec
from kvstore.row_codecs.rows import decode_rows, encode_rows

__all__ = [
    "MODEL_ROWS",
    "ElementCodec",
    "KeyValueLayout",
    "RowCodec",
    "RowLayout",
    "decode_rows",
    "encode_rows",
]
