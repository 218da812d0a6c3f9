"""Loading of weights that are all there, and refusal of those a model would be served without.

transformers fills missing weights with random numbers and drops those it has no place for, with a
warning at most. Both give wrong answers, and random ones differ between prefill and decode.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from services.runtime.model.model_errors import ModelRefused

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# computed from the configuration; old checkpoints hold them all the same
_HARMLESS_ENDINGS = ("rotary_emb.inv_freq", "attn.masked_bias", "embeddings.position_ids")
_SHOWN = 4
_REPORTED_NAME = re.compile(r"^([\w.{}-]+) *\| \S", re.MULTILINE)


def load_weights(**arguments: object) -> PreTrainedModel:
    """Load a model through transformers, with every weight of its own and no other.

    Raises `ModelRefused` naming the weights that do not fit, and what transformers raises.
    """
    from transformers import AutoModelForCausalLM

    with _reports() as reports:
        try:
            # weights of other sizes are told by name below
            model, loading_info = AutoModelForCausalLM.from_pretrained(
                **arguments, output_loading_info=True, ignore_mismatched_sizes=True
            )
        except RuntimeError as error:
            names = [name for text in reports for name in _REPORTED_NAME.findall(text)]
            if not names:
                raise
            raise _refused([f"these cannot be put together: {_listed(names)}"]) from error
    _require_all(loading_info)
    loaded: PreTrainedModel = model
    return loaded


def _require_all(loading_info: Mapping[str, object]) -> None:
    """Raise `ModelRefused` unless the file has just what the model has.

    The information has no tied weights, and none that the model itself declares to be harmless.
    """
    # with the shapes of the file and of the model
    mismatched = [
        f"{name} ({_shape(found)} in the file, {_shape(wanted)} by config.json)"
        for name, found, wanted in _mismatches(loading_info)
    ]
    faults = (
        ("the file lacks", _named(loading_info, "missing_keys")),
        ("the model of config.json has no", _named(loading_info, "unexpected_keys")),
        ("sizes differ:", mismatched),
    )
    told = [f"{fault} {_listed(names)}" for fault, names in faults if names]
    if told:
        raise _refused(told)


def _refused(faults: list[str]) -> ModelRefused:
    return ModelRefused(
        f"its weights are not those that its config.json describes: {'; '.join(faults)}. "
        "Take both from one checkpoint"
    )


@contextmanager
def _reports() -> Iterator[list[str]]:
    """Collect the reports that transformers would log, each a table of many lines."""
    log = logging.getLogger("transformers.modeling_utils")
    reports: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "LOAD REPORT" not in text:
            return True
        reports.append(text)
        return False

    log.addFilter(keep)
    try:
        yield reports
    finally:
        log.removeFilter(keep)


def _named(loading_info: Mapping[str, object], kind: str) -> list[str]:
    found = loading_info.get(kind) or ()
    assert isinstance(found, Iterable)
    return sorted(name for name in map(str, found) if not name.endswith(_HARMLESS_ENDINGS))


def _mismatches(
    loading_info: Mapping[str, object],
) -> list[tuple[str, Iterable[int], Iterable[int]]]:
    found = loading_info.get("mismatched_keys") or ()
    assert isinstance(found, Iterable)
    return sorted(found)


def _shape(sizes: Iterable[int]) -> str:
    return "×".join(map(str, sizes))


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
