"""Content keys: one name for all caches that may stand in for each other."""

from __future__ import annotations

import dataclasses
import hashlib
import re

from kvstore.cache import Fingerprint, canonical_json
from kvstore.errors import InvalidParameter
from kvstore.row_codecs import MODEL_ROWS

DEFAULT_NAMESPACE = "default"
# what keys of caches with the model's own rows have always said
_NO_CODEC = "none"

# names a folder, so neither a dot at the head nor a separator; a digit of SHA-256 is lower case
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# another recipe for the digest needs another number here
_RECIPE = "headwise.content_key.1"


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class ContentKey:
    """The name of a stored cache: a tenant's namespace, and a lower-case hex SHA-256.

    Keys are made by `of`, or read back from a name that `of` made. Raises `InvalidParameter` for a
    namespace or digest that is no name.
    """

    namespace: str
    digest: str

    def __post_init__(self) -> None:
        if not _NAMESPACE.fullmatch(self.namespace):
            raise InvalidParameter(
                "namespace", "must be 1 to 64 letters, digits, '_', '-' or '.', no '.' first"
            )
        if not _DIGEST.fullmatch(self.digest):
            raise InvalidParameter("digest", "must be 64 lower-case hex digits")

    @classmethod
    def of(cls, fingerprint: Fingerprint, namespace: str = DEFAULT_NAMESPACE) -> ContentKey:
        """The key of the caches with this fingerprint.

        `model_id` and `revision` are left out: they are names, and the same weights may have two.
        The digest is the same in every process and on every machine.
        """
        contents = {
            "recipe": _RECIPE,
            "namespace": namespace,
            "weights_digest": fingerprint.model.weights_digest,
            "tokenizer_digest": fingerprint.model.tokenizer_digest,
            "dtype": fingerprint.model.dtype,
            "token_digest": fingerprint.token_digest,
            "policy": fingerprint.policy,
            "policy_parameters": fingerprint.policy_parameters,
            "codec": _NO_CODEC if fingerprint.codec == MODEL_ROWS.name else fingerprint.codec,
            "format_version": fingerprint.format_version,
        }
        return cls(namespace, hashlib.sha256(canonical_json(contents).encode()).hexdigest())
