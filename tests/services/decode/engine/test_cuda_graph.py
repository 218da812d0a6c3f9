"""A step on the device alone does what the engine's step does, and asks no host."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from kvstore.errors import PoolExhausted
from kvstore.pool import ChunkPart, PageCount, PagePool, RetentionChunk, SequencePages
from kvstore.row_codecs import MODEL_ROWS, RowCodec
from services.decode.engine.step import forward_step, run_step
from services.runtime.model.served_model import ServedModel, load_model
from tests.services.decode.engine.engine_parts import prefill

pytest.importorskip("triton")

from kvstore.pool.graph_batch import GraphBatch
from services.decode.engine.cuda_graph import CapturedStep
from tests.pretended_cuda.recording import Launches
from tests.pretended_cuda.tensors import DeviceTensor, Waits

pytestmark = pytest.mark.usefixtures("sanitized")

# two heads with victims every few steps, and heads that keep everything
_POLICY = ("coverage", {"recovery": 0.6, "floor_rows": 8, "windows": [8, 16], "grow": False})
_LENGTHS = (15, 23)


@pytest.fixture(scope="module")
def served(tiny_model: Path, any_device: str) -> ServedModel:
    torch.set_num_threads(2)
    return load_model(str(tiny_model), device=any_device)


def new_pool(served: ServedModel) -> PagePool:
    return PagePool(
        served.shapes,
        pages=1200,
        page_rows=8,
        dtype=served.dtype,
        device=served.model.device,
        poison=True,
    )


def opened(
    served: ServedModel, pool: PagePool, policy: str, codec: RowCodec = MODEL_ROWS
) -> tuple[list[SequencePages], list[int]]:
    """Sequences with room to grow, and what each is fed next."""
    sequences, tokens = [], []
    for length in _LENGTHS:
        prompt = served.tokenizer.encode(topics["compound"])[: length + 1]
        parameters = _POLICY[1] if policy == "coverage" else {}
        layers = prefill(served, prompt[:-1], policy, parameters, codec=codec)
        pages = pool.open(length, PageCount(200, 200), codec)
        for index, layer in enumerate(layers):
            pages.load(index, layer)
        sequences.append(pages)
        tokens.append(prompt[-1])
    return sequences, tokens


def state(sequence: SequencePages) -> list[list[tuple[list[int], torch.Tensor, torch.Tensor]]]:
    """Positions, keys and values of every head by position."""
    found = []
    for layer in range(len(sequence.shapes)):
        of_layer = []
        for head in sequence.heads(layer):
            order = head.positions.argsort()
            of_layer.append((head.positions[order].tolist(), head.keys[order], head.values[order]))
        found.append(of_layer)
    return found


@pytest.mark.parametrize(
    ("any_device", "codec", "chunk"),
    [
        ("", "model", 1),
        ("", "model", 3),
        ("", "int8/int4", 1),
        ("", "int8/int4", 3),
        # as graphs, which are replayed with what was known when they were captured
        ("gpu", "int8/int4", 3),
    ],
    indirect=["any_device"],
)
def test_a_graph_step_equals_the_engines_step(served: ServedModel, codec: str, chunk: int) -> None:
    """Four steps: blocks of three tokens end after the third, and with who leaves."""
    pools = [new_pool(served) for _ in range(2)]
    (ours, tokens), (theirs, fed) = (
        opened(served, pool, "coverage", RowCodec.parse(codec)) for pool in pools
    )
    resident = GraphBatch(pools[0], RowCodec.parse(codec), 3, chunk)
    step = CapturedStep(served, resident)
    resident.enter(ours)
    staging_slots = pools[1].new_staged_rows(chunk * len(theirs))
    for number in range(4):
        if number % chunk == 0:
            blocks = [RetentionChunk(one, chunk * n) for n, one in enumerate(theirs)]
        # afterwards each is fed what was chosen for it
        step.run(None if number else tokens)
        ends = number == 3 or number % chunk == chunk - 1
        with torch.inference_mode():
            parts = [ChunkPart(one, 1, ends) for one in blocks]
            fed_step, logits = forward_step(served, staging_slots, parts, fed)
            fed_step.retain()
        fed = logits.argmax(-1).tolist()
        torch.testing.assert_close(step.logits[:2], logits, atol=2e-4, rtol=1e-4)
        resident.sync_rows()
        assert step.tokens[:2].tolist() == fed
    resident.leave()
    for one, other in zip(ours, theirs, strict=True):
        assert one.length == other.length
        assert one.reservation.used == other.reservation.used
        for mine, yours in zip(state(one), state(other), strict=True):
            for (at, *rows), (same, *others) in zip(mine, yours, strict=True):
                assert at == same
                for row, expected in zip(rows, others, strict=True):
                    if codec == "model":
                        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)
    # every page is accounted for, and the sequences go on as ever
    for sequence in ours:
        sequence.release()
    assert (pools[0].used_pages, pools[0].used_metadata_pages, pools[0].reserved_pages) == (0, 0, 0)


@pytest.mark.parametrize("any_device", ["", "gpu"], indirect=True)
@pytest.mark.parametrize("chunk", [1, 3])
def test_sequences_come_and_go_while_others_stay(served: ServedModel, chunk: int) -> None:
    """A sequence leaves after a step, and another takes its place; the third stays in its own."""
    pools = [new_pool(served) for _ in range(2)]
    (ours, tokens), (theirs, fed) = (opened(served, pool, "coverage") for pool in pools)
    (late, late_tokens), (late_theirs, _) = (opened(served, pool, "coverage") for pool in pools)
    batch = GraphBatch(pools[0], MODEL_ROWS, 2, chunk)
    step = CapturedStep(served, batch)
    batch.enter(ours)

    def step_both(mine: list[SequencePages], others: list[SequencePages], fed: list[int]) -> None:
        places = batch.places_of(mine)
        by_place = [fed[places.index(place)] for place in range(2)]
        step.run(by_place)
        with torch.inference_mode():
            logits = run_step(served, others, fed)
            torch.testing.assert_close(step.logits_of(places), logits, atol=2e-4, rtol=1e-4)
        batch.sync_rows()

    step_both(ours, theirs, fed)
    before = Waits.count
    batch.leave(ours[:1])
    if isinstance(batch.batch.rows, DeviceTensor):
        # one for the tables, and one for the rows where that ends a chunk
        assert Waits.count == before + (2 if chunk > 1 else 1)
    assert batch.sequences == (ours[1],)
    assert ours[0].length == theirs[0].length
    before = Waits.count
    batch.enter(late[:1])
    assert Waits.count == before
    assert batch.places_of([late[0], ours[1]]) == [0, 1]
    step_both([late[0], ours[1]], [late_theirs[0], theirs[1]], [late_tokens[0], tokens[1]])
    batch.leave()
    pairs = [(ours[0], theirs[0]), (ours[1], theirs[1]), (late[0], late_theirs[0])]
    for one, other in pairs:
        assert one.reservation.used == other.reservation.used
        assert one.length == other.length
        for mine, yours in zip(state(one), state(other), strict=True):
            assert [at for at, *_ in mine] == [at for at, *_ in yours]
    for sequence in (*ours, *late):
        sequence.release()
    assert (pools[0].used_pages, pools[0].used_metadata_pages, pools[0].reserved_pages) == (0, 0, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real one does not count")
@pytest.mark.parametrize("any_device", ["gpu"], indirect=True)
def test_inside_a_chunk_the_host_waits_for_nothing(served: ServedModel) -> None:
    """A head's page is filled inside the chunk; its next page was lent at the chunk's beginning."""
    pool = new_pool(served)
    sequences, tokens = opened(served, pool, "full")
    batch = GraphBatch(pool, MODEL_ROWS, 2, chunk_tokens=12)
    step = CapturedStep(served, batch)
    batch.enter(sequences)
    used = sequences[0].reservation.used
    before = Waits.count
    for _ in range(11):
        step.run(tokens)
        batch.sync_rows()
    assert sequences[0].reservation.used.rows > used.rows
    assert Waits.count == before
    launches = Launches.count
    step.run()
    assert (Waits.count, Launches.count) == (before, launches + 1)
    batch.sync_rows()
    assert Waits.count == before + 1
    batch.leave()


def test_a_reservation_that_is_too_small_is_refused_before_anything_changes(
    served: ServedModel,
) -> None:
    pool = new_pool(served)
    sequences, tokens = opened(served, pool, "full")
    resident = GraphBatch(pool, MODEL_ROWS, 2)
    step = CapturedStep(served, resident)
    sequences[0].reservation.trim_to(PageCount())
    resident.enter(sequences)

    def steps() -> None:
        for _ in range(9):
            step.run(tokens)
            resident.sync_rows()

    with pytest.raises(PoolExhausted):
        steps()
    resident.leave()
    assert sequences[0].length == sequences[1].length - (_LENGTHS[1] - _LENGTHS[0])
    used = [sequence.reservation.used for sequence in sequences]
    for sequence in sequences:
        sequence.release()
    assert used[0].rows > 0
    assert pool.used_pages == 0


def test_sequences_that_share_pages_or_differ_in_codec_are_not_taken(served: ServedModel) -> None:
    pool = new_pool(served)
    sequences, _ = opened(served, pool, "full")
    assert GraphBatch(pool, MODEL_ROWS, 2).fits(sequences)
    assert not GraphBatch(pool, MODEL_ROWS, 1).fits(sequences)
    assert not GraphBatch(pool, RowCodec.parse("int8"), 2).fits(sequences)
    fork = sequences[0].fork()
    assert not GraphBatch(pool, MODEL_ROWS, 2).fits([fork])
