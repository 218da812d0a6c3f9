"""Measures all kernels: ceilings first, then each against them or against a peer.

`--tiny` tries the same scripts on toy shapes in Triton's interpreter, without a GPU; its figures
mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args(arguments)
    if chosen.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
    # Triton settles how kernels run when it is first imported
    import torch

    from benchmarks.gpu.run import run
    from benchmarks.gpu.sizes import LLAMA_3_8B, TINY

    def keep(document: dict[str, object]) -> None:
        if chosen.json:
            chosen.json.write_text(json.dumps(document, indent=2) + "\n")

    sizes, device = (TINY, "cpu") if chosen.tiny else (LLAMA_3_8B, "cuda")
    return 0 if run(sizes, torch.device(device), keep) else 1


if __name__ == "__main__":
    sys.exit(main())
