"""The options of a service that `headwise doctor` looks at."""

from __future__ import annotations

import dataclasses

from services.runtime.process.configuration import setting
from services.runtime.process.options import ModelOptions


@dataclasses.dataclass(frozen=True, slots=True)
class MachineOptions:
    """The model and what a service takes of the machine, spelled as for the service."""

    model: ModelOptions
    pool_bytes: int = setting(2 << 30, "Bytes of decode's page pool.", minimum=1 << 20)
    store_disk: str = setting("", "Folder for prefill's stored caches; empty for none.")
    ready_file: str = setting("", "Ready file of a service; empty for none.")
    prefill: str = setting("127.0.0.1:7081", "Address that decode would call, as HOST:PORT.")
