"""Authorities and certificates of a test's own, as files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import trustme

from headwise import Tls


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority that keeps what it issues in one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *names: str) -> Pair:
        """A pair for `names`, or for loopback; one issued anew replaces that of the same name."""
        issued = self._ca.issue_cert(*(names or ("127.0.0.1", "localhost")))
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        replace(pair.certificate, chain)
        replace(pair.key, issued.private_key_pem.bytes())
        return pair

    def client_tls(self, pair: Pair | None = None) -> Tls:
        """Trusts this authority, and shows the pair if there is one."""
        if pair is None:
            return Tls(self.file)
        return Tls(self.file, pair.certificate, pair.key)


def replace(path: Path, content: bytes) -> None:
    """Replace a file as a mounted secret changes: by a new file under the old name."""
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(content)
    os.replace(fresh, path)
