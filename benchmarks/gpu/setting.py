"""The device, sizes and ceilings that a part measures with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.sizes import LLAMA_3_8B, TINY, Sizes
from benchmarks.gpu.timing import Timer


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One part's surroundings. `folder` holds the files of the parts that ran before."""

    part: str
    sizes: Sizes
    device: torch.device
    folder: Path

    @classmethod
    def of(cls, part: str, folder: Path, *, tiny: bool) -> Setting:
        """Return that of a GPU, or of toy shapes in the interpreter."""
        sizes, device = (TINY, "cpu") if tiny else (LLAMA_3_8B, "cuda")
        return cls(part, sizes, torch.device(device), folder)

    @property
    def machine(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return "the interpreter on a CPU: times mean nothing"

    def timer(self, repeats: int = 0) -> Timer:
        """Return a timer, of other repeats than usual if given."""
        return Timer(self.device, self.sizes.flush_bytes, repeats or self.sizes.repeats)

    def ceilings(self) -> Ceilings:
        """Return the ceilings that an earlier part has measured, or assumed ones."""
        return Ceilings.read(self.folder)
