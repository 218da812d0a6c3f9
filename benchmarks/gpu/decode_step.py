"""A whole decode step of a model with random weights, captured, against what memory allows."""

from __future__ import annotations

import types

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.figures import Figure
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.head_lengths import head_lengths
from benchmarks.gpu.retain import RETENTION_CHUNK_TOKENS
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Timer
from kvstore.cache import LayerShape, RaggedLayer
from kvstore.pool import PageCount, PagePool, SequencePages
from kvstore.pool.graph_batch import GraphBatch
from kvstore.row_codecs import MODEL_ROWS
from kvstore.rules import FULL_RULE, RetentionRule
from services.decode.engine.cuda_graph import CapturedStep
from services.runtime.model import attention
from services.runtime.model.served_model import ServedModel

_KEPT_RATIO = 0.2
# every tenth head keeps everything; the others let go of a row for each that they take
_FULL_EVERY = 10
# rows that a head may come to have more than at first
_GROWTH = 512


def measure(sizes: Sizes, timer: Timer, ceilings: Ceilings) -> dict[str, Figure]:
    """The layers as they are, and transformers' own step over the dense cache."""
    with torch.inference_mode():
        served = _served(sizes, timer.device)
        ours = _captured(served, sizes, timer, ceilings, fused=False)
        dense = _dense_seconds(served, sizes, timer)
    figures = {f"{name}_unfused": figure for name, figure in ours.items()}
    if not dense:
        return figures
    against = "transformers' dense decode, times our unfused step"
    return figures | {
        "dense_step_ratio": Figure(dense / ours["step_seconds"].value, "ratio", against)
    }


def measure_fused(sizes: Sizes, timer: Timer, ceilings: Ceilings) -> dict[str, Figure]:
    """The layers compiled, as `--cuda-graphs compiled` has it."""
    with torch.inference_mode():
        served = _served(sizes, timer.device)
        return _captured(served, sizes, timer, ceilings, fused=True)


def _captured(
    served: ServedModel, sizes: Sizes, timer: Timer, ceilings: Ceilings, *, fused: bool
) -> dict[str, Figure]:
    weights = sum(part.nbytes for part in served.model.parameters())
    # looked up, one row a token
    weights -= served.model.get_input_embeddings().weight.nbytes
    pool, sequences = _filled(served, sizes, timer.device)
    kept, resident = pool.rows * sizes.row_bytes, pool.resident_bytes
    batch = GraphBatch(pool, MODEL_ROWS, sizes.sequences, RETENTION_CHUNK_TOKENS)
    step = CapturedStep(served, batch, fused=fused)
    batch.enter(sequences)

    def block() -> None:
        for _ in range(RETENTION_CHUNK_TOKENS):
            step.run()
            batch.sync_rows()

    seconds = timer.seconds(block) / RETENTION_CHUNK_TOKENS
    limit = (weights + kept) / ceilings.copy_bytes
    return {
        "step_seconds": Figure(
            seconds, "seconds", f"a token for every sequence, rules every {RETENTION_CHUNK_TOKENS}"
        ),
        "step_of_limit_ratio": Figure(
            limit / seconds, "ratio", "weights and kept rows at copy bandwidth", 0.8
        ),
        "resident_ratio": Figure(
            resident / kept, "ratio", "bytes of the kept keys and values", 1.05
        ),
    }


def _served(sizes: Sizes, device: torch.device) -> ServedModel:
    attention.register()
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.query_heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_size,
        max_position_embeddings=2 * sizes.context,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).to(sizes.dtype).eval()
    model.set_attn_implementation(attention.IMPLEMENTATION)
    classes = torch.zeros(sizes.vocabulary, dtype=torch.uint8)
    shape = LayerShape(sizes.kv_heads, sizes.query_heads, sizes.head_size)
    return ServedModel(
        model=model,
        tokenizer=types.SimpleNamespace(classes=classes),
        fingerprint=None,
        shapes=(shape,) * sizes.layers,
        context_tokens=2 * sizes.context,
        vocabulary_size=sizes.vocabulary,
        dtype=sizes.dtype,
        eos_token_ids=frozenset(),
    )


def _filled(
    served: ServedModel, sizes: Sizes, device: torch.device
) -> tuple[PagePool, list[SequencePages]]:
    heads = sizes.sequences * sizes.layers * sizes.kv_heads
    counts = head_lengths(heads, _KEPT_RATIO * sizes.context, most=sizes.context)
    each = (counts + _GROWTH + sizes.page_rows) // sizes.page_rows
    pool = PagePool(
        served.shapes,
        pages=int(each.sum()),
        page_rows=sizes.page_rows,
        dtype=sizes.dtype,
        device=device,
        sequences=sizes.sequences,
        sequence_tokens=sizes.context + _GROWTH,
    )
    by_sequence = counts.view(sizes.sequences, sizes.layers, sizes.kv_heads)
    room = each.view(sizes.sequences, -1).sum(1)
    sequences = []
    for of_layers, pages in zip(by_sequence.tolist(), room.tolist(), strict=True):
        sequence = pool.open(sizes.context, PageCount(pages, pages))
        for index, rows in enumerate(of_layers):
            sequence.load(index, _a_layer(rows, sizes, device))
        sequences.append(sequence)
    return pool, sequences


def _a_layer(rows: list[int], sizes: Sizes, device: torch.device) -> RaggedLayer:
    offsets = [0]
    for count in rows:
        offsets.append(offsets[-1] + count)
    size = (2, offsets[-1], sizes.head_size)
    keys, values = torch.randn(size, device=device, dtype=sizes.dtype)
    nothing = torch.empty(0, device=device)
    rules = tuple(
        FULL_RULE if n % _FULL_EVERY == 0 else RetentionRule(window=count)
        for n, count in enumerate(rows)
    )
    positions = [torch.arange(sizes.context - count, sizes.context) for count in rows]
    return RaggedLayer(
        keys,
        values,
        torch.cat(positions).int().to(device),
        tuple(offsets),
        rules,
        (1.0,) * len(rows),
        nothing,
        nothing.to(torch.uint8),
    )


def _dense_seconds(served: ServedModel, sizes: Sizes, timer: Timer) -> float:
    """A step of the same model over the dense cache; 0 where that does not fit."""
    model, here = served.model, timer.device
    model.set_attn_implementation("sdpa")
    size = (sizes.sequences, sizes.kv_heads, sizes.context, sizes.head_size)
    tokens = torch.zeros(sizes.sequences, 1, dtype=torch.int64, device=here)
    try:
        cache = DynamicCache()
        for layer in range(sizes.layers):
            k, v = (torch.randn(size, device=here, dtype=sizes.dtype) for _ in "kv")
            cache.update(k, v, layer)
        return timer.seconds(lambda: model(input_ids=tokens, past_key_values=cache))
    except torch.OutOfMemoryError:
        return 0.0
