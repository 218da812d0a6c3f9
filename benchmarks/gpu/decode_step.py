"""A whole decode step of a model with random weights, captured, against what memory allows."""

from __future__ import annotations

import gc
import types

import torch
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from benchmarks.figures import Figure
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.figures import Figures
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
# transformers' caches: the first grows by a copy of itself in each step, most of whose time that is
_CACHES = {
    "a DynamicCache, which is copied to grow": "dense",
    "a StaticCache, which masks its room to grow": "static",
}
# rows that a head may come to have more than at first
_GROWTH = 512


@torch.inference_mode()
def measure(sizes: Sizes, timer: Timer, few: Timer, ceilings: Ceilings) -> Figures:
    """The layers as they are, and transformers' own step over dense caches, of `few` repeats."""
    served = random_model(sizes, timer.device)
    ours = _captured(served, sizes, timer, ceilings, fused=False)
    for name, figure in ours.items():
        yield f"{name}_unfused", figure
    # a batch on the device and its sequences refer to each other
    gc.collect()
    for kind, cache in _CACHES.items():
        if seconds := _dense_seconds(served, sizes, few, cache):
            against = f"transformers' decode over {kind}"
            yield f"{cache}_step_seconds", Figure(seconds, "seconds", against)
            ratio = seconds / ours["step_seconds"].value
            yield f"{cache}_step_ratio", Figure(ratio, "ratio", f"{against}, times our unfused")


@torch.inference_mode()
def measure_fused(sizes: Sizes, timer: Timer, ceilings: Ceilings) -> Figures:
    """The layers compiled, as `--cuda-graphs compiled` has it."""
    served = random_model(sizes, timer.device)
    yield from _captured(served, sizes, timer, ceilings, fused=True).items()


def _captured(
    served: ServedModel, sizes: Sizes, timer: Timer, ceilings: Ceilings, *, fused: bool
) -> dict[str, Figure]:
    weights = sum(part.nbytes for part in served.model.parameters())
    # looked up, one row a token
    weights -= served.model.get_input_embeddings().weight.nbytes
    pool, sequences = filled_pool(served, sizes, timer.device)
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
            limit / seconds,
            "ratio",
            f"weights and kept rows at {ceilings.copying}",
            0.8,
            at_least=True,
        ),
        "resident_ratio": Figure(
            resident / kept, "ratio", "bytes of the kept keys and values", 1.05
        ),
    }


def random_model(sizes: Sizes, device: torch.device) -> ServedModel:
    """Return a model of that shape with random weights."""
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


def filled_pool(
    served: ServedModel, sizes: Sizes, device: torch.device
) -> tuple[PagePool, list[SequencePages]]:
    """Return a pool with a sequence in every place, as long as a compact cache of its context."""
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


def _dense_seconds(served: ServedModel, sizes: Sizes, timer: Timer, kind: str) -> float:
    """A step of the same model over a dense cache; 0 where that does not fit."""
    model, here = served.model, timer.device
    model.set_attn_implementation("sdpa")
    tokens = torch.zeros(sizes.sequences, 1, dtype=torch.int64, device=here)
    try:
        cache = _dense_cache(served, sizes, here, kind, sizes.context + timer.calls)
        return timer.seconds(lambda: model(input_ids=tokens, past_key_values=cache))
    except torch.OutOfMemoryError:
        return 0.0


def _dense_cache(
    served: ServedModel, sizes: Sizes, device: torch.device, kind: str, most: int
) -> Cache:
    """Return a cache of random rows for every token of the context, with room for `most`."""
    size = (sizes.sequences, sizes.kv_heads, sizes.context, sizes.head_size)
    cache = DynamicCache() if kind == "dense" else StaticCache(served.model.config, most)
    for layer in range(sizes.layers):
        k, v = (torch.randn(size, device=device, dtype=sizes.dtype) for _ in "kv")
        cache.update(k, v, layer, {"cache_position": torch.arange(sizes.context, device=device)})
    return cache
