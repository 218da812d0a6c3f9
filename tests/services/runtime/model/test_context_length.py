"""The context of a model whose positions YaRN extends, against transformers' own frequencies."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from services.runtime.model.context_length import context_tokens


def _config(positions: int, **rope: object) -> LlamaConfig:
    return LlamaConfig(
        max_position_embeddings=positions, rope_parameters={"rope_theta": 1e4, **rope}
    )


@pytest.mark.parametrize(
    ("positions", "rope", "expected"),
    [
        # Qwen2.5's model card: 32,768 tokens, and 131,072 with a factor of 4
        (32_768, {"original_max_position_embeddings": 32_768, "factor": 4.0}, 131_072),
        (32_768, {"factor": 4.0}, 131_072),
        # the length in the file is the extended one already
        (131_072, {"original_max_position_embeddings": 32_768, "factor": 4.0}, 131_072),
    ],
)
def test_yarn_extends_the_context(positions: int, rope: dict[str, object], expected: int) -> None:
    config = _config(positions, rope_type="yarn", **rope)
    assert context_tokens(config) == expected
    # the slowest pair of a head turns as far at the end as it did at the original end
    frequencies, _ = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    plain = 1e4 ** (-126 / 128)
    assert frequencies[-1] * expected == pytest.approx(plain * 32_768, rel=1e-5)


def test_other_types_keep_the_length_of_the_file() -> None:
    assert context_tokens(_config(8192, rope_type="default")) == 8192
    assert context_tokens(_config(8192, rope_type="linear", factor=2.0)) == 8192
