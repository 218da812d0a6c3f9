"""Retention of heads of mixed rules, budgets among them, against the rule's definition."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.pool import Pool, fill
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.sizes import TINY
from benchmarks.gpu.smoke.errors import NOT_FINITE, error, figure, twice
from kvstore.kernels.device_batch import DeviceBatch, DeviceScratch
from kvstore.kernels.retain.free_pages import FreePages
from kvstore.kernels.retain.kernel import retain
from kvstore.retention import keep_mask
from kvstore.rule_table import full_rules, may_evict, rule_to_record, rule_words
from kvstore.rules import FULL_RULE, RetentionRule, ScoreUpdate

_FED, _LENGTH = 3, 4000
_RULES = (
    FULL_RULE,
    RetentionRule(window=40, sinks=4),
    RetentionRule(window=20, budget_rows=30, budget_beyond=True, score_update=ScoreUpdate.SUM),
    RetentionRule(window=16, budget_ratio=0.01, score_update=ScoreUpdate.DECAYED, score_decay=0.9),
)
_ROWS = ((0, 1, 63, 257), (64, 130, 1500, 17))
_FEW_ROWS = ((0, 1, 63, 70), (64, 50, 33, 17))
# a sum and a product in float32
_SCORES = 4e-7


@dataclasses.dataclass(frozen=True, slots=True)
class _Head:
    """Positions, scores, keys and values of a head's rows, by position."""

    positions: torch.Tensor
    scores: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


def check(here: Setting) -> Figures:
    """Yield the heads that are wrong, for pages of both sizes."""
    counts = _ROWS if here.device.type == "cuda" else _FEW_ROWS
    for page_rows in (16, 64):
        worst, same = _check(here, torch.tensor(counts, dtype=torch.int32), page_rows)
        name = f"smoke_retention_{page_rows}_rows"
        yield name, figure(worst, same, "keep_mask, and rows bit by bit")


def _check(here: Setting, counts: torch.Tensor, page_rows: int) -> tuple[float, bool]:
    sizes = dataclasses.replace(
        TINY,
        sequences=len(counts),
        layers=1,
        kv_heads=len(_RULES),
        head_size=128,
        page_rows=page_rows,
        context=_LENGTH,
    )
    rows = counts[:, None].to(here.device)
    pool = fill(rows, sizes, spare_pages=16, growth_rows=_FED)
    batch = _with_rules(pool, _FED)
    starts = (rows + _FED).flatten().cumsum(0).view(rows.shape) - rows - _FED
    attention = torch.rand(int((rows + _FED).sum()), device=here.device)
    before = _heads(batch)
    results = []

    def step() -> list[torch.Tensor]:
        again, free, metadata = _copied(batch), _copied(pool.free), _copied(pool.free)
        scratch = DeviceScratch(
            torch.where(again.has_metadata, starts, -1),
            again.has_metadata,
            attention.clone(),
            torch.full((attention.numel(),), 77, dtype=torch.uint8, device=here.device),
            (True,),
        )
        retain(again, scratch, free, metadata)
        again.lengths.add_(_FED)
        found = _heads(again)
        results.append((again, free, found))
        # which page a row lies in may differ, what a head holds may not
        return [getattr(head, name) for head in found for name in ("positions", "keys", "values")]

    changed, same = twice(here.part, step)
    after, free, found = results[0]
    found[0] = dataclasses.replace(found[0], positions=changed[0])
    worst = 0.0 if _pages_are_whole(after, free) else NOT_FINITE
    for place, (old, new) in enumerate(zip(before, found, strict=True)):
        b, h = divmod(place, len(_RULES))
        shares = attention[int(starts[b, 0, h]) :][: len(old.positions) + _FED]
        worst = max(worst, _wrong(_expected(batch, old, shares, b, h), new, _RULES[h]))
    return worst, same


def _with_rules(pool: Pool, fed: int) -> DeviceBatch:
    """Return the batch with the rules, positions and scores of its heads, and new tokens."""
    batch, device = pool.batch, pool.rows.device
    rules = full_rules(pool.rows.shape)
    for h, rule in enumerate(_RULES):
        rules[:, :, h] = rule_to_record(rule)
    positions = torch.zeros(pool.row_count, dtype=torch.int32, device=device)
    page_rows = batch.metadata_page_rows
    for b in range(batch.sequences):
        for h in range(len(_RULES)):
            slots = torch.arange(int(pool.rows[b, 0, h]), device=device)
            at = batch.pages[b, 0, h, slots // page_rows].long() * page_rows + slots % page_rows
            drawn = torch.randperm(_LENGTH, device=device)[: len(slots)]
            # what keeps everything holds its rows in their order
            positions[at] = (drawn if may_evict(rules)[b, 0, h] else slots).int()
    staged = (2, 1, len(_RULES), batch.sequences * fed, batch.new_keys.shape[-1])
    keys, values = torch.randn(staged, device=device).to(batch.new_keys.dtype)
    return dataclasses.replace(
        batch,
        positions=positions,
        scores=torch.rand(pool.row_count, device=device),
        metadata_flags=torch.zeros(pool.row_count, dtype=torch.uint8, device=device),
        metadata=batch.pages.clone(),
        has_metadata=torch.from_numpy(may_evict(rules)).to(device),
        weighted=torch.zeros_like(batch.weighted),
        rules=torch.from_numpy(rule_words(rules)).to(device),
        new_keys=keys,
        new_values=values,
        flags=torch.zeros(batch.sequences * fed, dtype=torch.uint8, device=device),
        staging_slots=batch.staging_slots * fed,
        counts=batch.counts * fed,
    )


def _copied(given: Any) -> Any:
    """Return it with tensors of its own, the arena among them."""
    changes = {
        field.name: getattr(given, field.name).clone()
        for field in dataclasses.fields(given)
        if isinstance(getattr(given, field.name), torch.Tensor)
    }
    if isinstance(given, DeviceBatch):
        store = given.row_pages
        changes["row_pages"] = type(store).of(store.arena.clone(), store.page_layout)
    return dataclasses.replace(given, **changes)


def _heads(batch: DeviceBatch) -> list[_Head]:
    """Return what each head holds, by position; rows of heads without metadata are in order."""
    store, found = batch.row_pages, []
    for b in range(batch.sequences):
        for h in range(len(_RULES)):
            slots = torch.arange(int(batch.rows[b, 0, h]), device=batch.rows.device)
            at = batch.pages[b, 0, h, slots // store.page_rows].long(), slots % store.page_rows
            positions, scores = slots, torch.zeros(len(slots), device=slots.device)
            if bool(batch.has_metadata[b, 0, h]):
                page = batch.metadata[b, 0, h, slots // batch.metadata_page_rows].long()
                entry = page * batch.metadata_page_rows + slots % batch.metadata_page_rows
                positions, scores = batch.positions[entry].long(), batch.scores[entry]
            order = positions.argsort()
            keys, values = store.keys[at], store.values[at]
            found.append(_Head(positions[order], scores[order], keys[order], values[order]))
    return found


def _expected(batch: DeviceBatch, old: _Head, shares: torch.Tensor, b: int, h: int) -> _Head:
    """Return what the head is to hold after the tokens; `shares` are in the order of slots."""
    rule, own = _RULES[h], slice(b * _FED, (b + 1) * _FED)
    bounded = bool(batch.has_metadata[b, 0, h])
    first = _LENGTH if bounded else len(old.positions)
    new = torch.arange(first, first + _FED, device=old.positions.device)
    positions = torch.cat((old.positions, new))
    scores = torch.cat((old.scores, torch.zeros(_FED, device=new.device))).double()
    if rule.score_update is ScoreUpdate.DECAYED:
        scores *= rule.score_decay**_FED
    if rule.needs_scores:
        scores += torch.cat((shares[_slots(batch, b, h)], shares[len(old.positions) :]))
    keys = torch.cat((old.keys, batch.new_keys[0, h, own]))
    values = torch.cat((old.values, batch.new_values[0, h, own]))
    stays = torch.ones_like(positions, dtype=torch.bool)
    if bounded:
        flags = torch.zeros(len(positions), dtype=torch.uint8)
        kept = keep_mask(rule, positions.cpu(), scores.cpu(), flags, _LENGTH + _FED)
        stays = kept.to(stays.device)
    return _Head(positions[stays], scores[stays], keys[stays], values[stays])


def _slots(batch: DeviceBatch, b: int, h: int) -> torch.Tensor:
    """Return the slots of a head's rows in the order of their positions."""
    slots = torch.arange(int(batch.rows[b, 0, h]), device=batch.rows.device)
    page = batch.metadata[b, 0, h, slots // batch.metadata_page_rows].long()
    entry = page * batch.metadata_page_rows + slots % batch.metadata_page_rows
    return batch.positions[entry].long().argsort()


def _wrong(expected: _Head, found: _Head, rule: RetentionRule) -> float:
    """Return the error of a head: what it holds must be equal, its scores nearly."""
    same = torch.equal(expected.positions, found.positions) and all(
        torch.equal(getattr(expected, name), getattr(found, name)) for name in ("keys", "values")
    )
    if not same:
        return NOT_FINITE
    if not rule.needs_scores:
        return 0.0
    return error(found.scores, expected.scores, _SCORES, _SCORES)


def _pages_are_whole(batch: DeviceBatch, free: FreePages) -> bool:
    """Whether every page is free or in one head's table, and the queue did not run dry."""
    size = batch.row_pages.page_rows
    number = torch.arange(batch.pages.shape[3], device=batch.pages.device)
    held = batch.pages[number < ((batch.rows + size - 1) // size)[..., None]]
    ring = free.ring.roll(-int(free.taken))[: int(free.returned - free.taken)]
    pages = torch.cat((held, ring)).sort().values
    whole = torch.arange(free.ring.numel(), device=pages.device).int()
    return torch.equal(pages, whole) and not int(free.exhausted)
