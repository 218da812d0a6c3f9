"""Runs in OpenVINO's own environment: decodes on demand, and says what each token took.

Arguments: a GGUF file, threads, tokens of context. Answers each line of its input, a number of
tokens, with a line of JSON: seconds per token. The first line comes once the context is filled.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import openvino
import openvino_genai


def main() -> None:
    path, threads, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    pipeline = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
    # a chat keeps its cache between calls; only what is new is fed
    pipeline.start_chat()
    generate(pipeline, [7 + n % 1000 for n in range(tokens)], 1)
    answer([])
    for line in sys.stdin:
        answer(generate(pipeline, [7], int(line)))


def generate(
    pipeline: openvino_genai.LLMPipeline, token_ids: list[int], new_tokens: int
) -> list[float]:
    """Seconds of each new token but the first, which includes the call itself."""
    settings = openvino_genai.GenerationConfig(max_new_tokens=new_tokens, ignore_eos=True)
    result = pipeline.generate(
        openvino_genai.TokenizedInputs(tensor([token_ids]), tensor([[1] * len(token_ids)])),
        settings,
    )
    return [microseconds / 1e6 for microseconds in result.perf_metrics.raw_metrics.m_durations]


def tensor(rows: list[list[int]]) -> openvino.Tensor:
    return openvino.Tensor(np.array(rows, np.int64))


def answer(value: object) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
