"""Each published policy against an independent implementation of its paper's definition."""

import itertools
import math

import pytest
import torch

from kvstore.policies import known_policies, parse_policy
from kvstore.policies.cascading import cascade
from kvstore.policies.pyramid_infer import cosine_shares
from kvstore.policies.pyramidkv import falling_shares
from kvstore.policies.uncomp import group_shares, matrix_entropies
from kvstore.retention import keep_mask
from kvstore.rules import TokenClass
from tests.kvstore.policies.planning import (
    LAYERS,
    SCALE,
    SMALL,
    TOKENS,
    calibration_of,
    layers_of,
    plans_of,
    repetition_peaks,
)

# 60 of 150 rows a head
SIXTY = {"budget": 0.4, "floor_rows": 8, "sinks": 4}


def planned(name, layers=None, **parameters):
    return plans_of(parse_policy(name, {**SIXTY, **parameters}), layers or layers_of(0))


def votes_of(layer, rows):
    """Each column's attention from the last `rows` queries, mean over the group, `[H, T]`."""
    n = layer.k.shape[1]
    logits = layer.q.double() @ layer.k.double().repeat_interleave(2, 0).mT * SCALE
    future = torch.arange(n)[:, None] < torch.arange(n)
    mass = logits.masked_fill(future, -torch.inf).softmax(-1)
    return mass[:, n - rows :].sum(1).view(2, 2, n).mean(1)


def best(votes, count, allowed):
    """The `count` positions of most votes among `allowed`; of equal ones the earlier."""
    return set(sorted(allowed, key=lambda j: (-float(votes[j]), j))[:count])


def decoded(head, fed, length=TOKENS):
    """The positions held after each of `fed` tokens, which receive no attention themselves."""
    held = head.rows.tolist()
    scores = dict(
        enumerate((head.scores if head.scores is not None else torch.zeros(length)).tolist())
    )
    for position in range(length, length + fed):
        held.append(position)
        scores[position] = 0.0
        values = torch.tensor([scores[p] for p in held])
        flags = torch.full((len(held),), int(TokenClass.NONE), dtype=torch.uint8)
        kept = keep_mask(head.rule, torch.tensor(held), values, flags, position + 1)
        held = [p for p, stays in zip(held, kept.tolist(), strict=True) if stays]
        yield held


def test_streaming_llm_keeps_sinks_and_a_window_that_slides():
    for plan in planned("streaming_llm"):
        for head in plan.heads:
            assert head.rows.tolist() == [0, 1, 2, 3, *range(TOKENS - 56, TOKENS)]
            for step, held in enumerate(decoded(head, 70), 1):
                assert held == [0, 1, 2, 3, *range(TOKENS + step - 56, TOKENS + step)]


def test_h2o_keeps_the_latest_and_the_heaviest_in_equal_parts():
    layers = layers_of(1)
    for layer, plan in zip(layers, planned("h2o", layers), strict=True):
        votes = votes_of(layer, TOKENS)
        for head, kept in enumerate(plan.heads):
            recent = {*range(4), *range(TOKENS - 28, TOKENS)}
            heavy = best(votes[head], 28, set(range(TOKENS)) - recent)
            assert set(kept.rows.tolist()) == recent | heavy
            share = votes[head][kept.rows].sum() / TOKENS
            assert kept.attention_coverage == pytest.approx(float(share), abs=1e-5)


def test_h2o_holds_its_size_while_decoding():
    for held in decoded(planned("h2o")[0].heads[0], 40):
        assert len(held) == 60


@pytest.mark.parametrize("pool", [1, 5])
def test_snapkv_keeps_the_window_and_what_it_votes_for(pool):
    layers = layers_of(2)
    for layer, plan in zip(layers, planned("snapkv", layers, window=16, pool=pool), strict=True):
        votes = votes_of(layer, 16)
        for head, kept in enumerate(plan.heads):
            reach = pool // 2
            smooth = [
                max(votes[head][max(0, j - reach) : j + reach + 1].tolist()) for j in range(TOKENS)
            ]
            always = {*range(4), *range(TOKENS - 16, TOKENS)}
            chosen = set(kept.rows.tolist()) - always
            assert always <= set(kept.rows.tolist())
            assert len(chosen) == 40
            # equal votes are common once pooled: what is left out has none higher
            left = set(range(TOKENS)) - always - chosen
            assert max(smooth[j] for j in left) <= min(smooth[j] for j in chosen) + 1e-6


CHOSEN = (
    "snapkv",
    "adakv",
    "pyramidkv",
    "pyramid_infer",
    "chunkkv",
    "qfilters",
    "cascading",
    "citrus",
    "vlcache",
    "uncomp",
    "kvmerger",
    "reconstruction",
)


@pytest.mark.parametrize("name", CHOSEN)
def test_what_was_chosen_stays_and_generated_tokens_join_it(name):
    for plan in plans_of(parse_policy(name, SMALL[name]), layers_of(3)):
        for head in plan.heads:
            assert head.rule.head_class == "chosen"
            *_, held = decoded(head, 30)
            assert held == [*head.rows.tolist(), *range(TOKENS, TOKENS + 30)]


def test_adakv_shares_a_layers_budget_by_what_heads_win_of_it():
    layers = layers_of(4)
    # a head that looks at few columns, beside one that looks at all alike
    for layer in layers:
        layer.q[:2] *= 4
        layer.q[2:] *= 0.1
    parameters = {"window": 16, "pool": 1, "sinks": 0}
    equal = planned("snapkv", layers, **parameters)
    for layer, plan, even in zip(
        layers, planned("adakv", layers, **parameters), equal, strict=True
    ):
        votes = votes_of(layer, 16)
        votes[:, TOKENS - 16 :] = math.inf
        both = [(float(votes[h, j]), h) for h in range(2) for j in range(TOKENS)]
        winners = [h for _, h in sorted(both, key=lambda pair: -pair[0])[:120]]
        rows = [head.rows.numel() for head in plan.heads]
        for head in range(2):
            assert rows[head] == pytest.approx(0.2 * 60 + 0.8 * winners.count(head), abs=1)
        assert plan.rows == pytest.approx(even.rows, abs=1)
    assert rows[1] > rows[0] + 10


def test_adakv_with_a_whole_safeguard_is_snapkv():
    for one, other in zip(planned("adakv", safeguard=1), planned("snapkv"), strict=True):
        assert [h.rows.tolist() for h in one.heads] == [h.rows.tolist() for h in other.heads]


def test_pyramidkv_falls_on_a_straight_line():
    shares = falling_shares(20, 30)
    assert sum(shares) == pytest.approx(30)
    assert shares[-1] == pytest.approx(1 / 20)
    steps = [a - b for a, b in itertools.pairwise(shares)]
    assert max(steps) == pytest.approx(min(steps))
    assert min(steps) > 0
    layers = layers_of(5, TOKENS, (None,) * 5)
    rows = [plan.heads[0].rows.numel() for plan in planned("pyramidkv", layers, beta=5, window=8)]
    assert rows == pytest.approx([60 * share for share in falling_shares(5, 5)], abs=1)


def test_pyramidkv_gives_on_what_the_first_layers_cannot_hold():
    layers = layers_of(5, TOKENS, (None,) * 5)
    rows = [p.heads[0].rows.numel() for p in planned("pyramidkv", layers, budget=0.8, window=8)]
    assert rows[0] == TOKENS
    assert all(a >= b for a, b in itertools.pairwise(rows))
    assert sum(rows) == pytest.approx(5 * 120, abs=5)


def test_pyramid_infer_falls_with_depth_along_a_cosine():
    layers = layers_of(6, TOKENS, (None,) * 6)
    rows = [p.heads[0].rows.numel() for p in planned("pyramid_infer", layers, decay=0.5, window=8)]
    assert all(a > b for a, b in itertools.pairwise(rows))
    shares = cosine_shares(0.5, 6)
    for layer in range(1, 6):
        rho = 0.5 * (math.cos(math.pi * layer / 6) + 1) / 2 + 0.5
        assert shares[layer] == pytest.approx(shares[layer - 1] * rho)
        assert rows[layer] / rows[0] == pytest.approx(shares[layer], abs=0.02)


@pytest.mark.parametrize("chunk", [5, 10])
def test_chunkkv_keeps_whole_chunks_the_same_for_all_heads(chunk):
    layers = layers_of(7)
    for layer, plan in zip(layers, planned("chunkkv", layers, chunk=chunk, window=16), strict=True):
        kept = [set(head.rows.tolist()) for head in plan.heads]
        assert kept[0] == kept[1]
        always = {*range(4), *range(TOKENS - 16, TOKENS)}
        votes = votes_of(layer, 16).sum(0)
        scores = [float(votes[c * chunk : (c + 1) * chunk].sum()) for c in range(TOKENS // chunk)]
        left, expected = 60 - len(always), set(always)
        for number in sorted(range(len(scores)), key=lambda c: -scores[c]):
            members = [j for j in range(number * chunk, (number + 1) * chunk) if j not in always]
            expected |= set(members[:left])
            left -= len(members[:left])
        assert kept[0] == expected


@pytest.mark.parametrize("reuse", [1, 2, 3])
def test_chunkkv_layers_share_the_choice_of_their_groups_first(reuse):
    plans = planned("chunkkv", layers_of(8, TOKENS, (None,) * 5), window=16, reuse=reuse)
    rows = [plan.heads[0].rows.tolist() for plan in plans]
    for layer in range(1, 5):
        assert (rows[layer] == rows[layer - 1]) == (layer % reuse != 0)


def test_sagekv_keeps_what_the_last_token_looks_at_and_a_constant_size():
    layers = layers_of(9)
    for layer, plan in zip(layers, planned("sagekv", layers), strict=True):
        votes = votes_of(layer, 1)
        for head, kept in enumerate(plan.heads):
            window = {*range(4), *range(TOKENS - 26, TOKENS)}
            top = best(votes[head], 30, set(range(TOKENS)) - window)
            assert set(kept.rows.tolist()) == window | top
            for step, held in enumerate(decoded(kept, 40), 1):
                latest = range(TOKENS + step - 26, TOKENS + step)
                assert set(held) == {*range(4), *top, *latest}


def test_qfilters_keeps_keys_that_project_highest_on_the_filter():
    layers = layers_of(10)
    filters = calibration_of(layers).filters
    for layer, of_layer, plan in zip(
        layers, filters, planned("qfilters", layers, window=10), strict=True
    ):
        for head, kept in enumerate(plan.heads):
            always = {*range(4), *range(TOKENS - 10, TOKENS)}
            projections = layer.k[head].double() @ of_layer[head].double()
            top = best(projections, 46, set(range(TOKENS)) - always)
            assert set(kept.rows.tolist()) == always | top


@pytest.mark.parametrize(("least_window", "window"), [(10, 30), (50, 50), (4000, TOKENS)])
def test_razor_attention_has_two_classes_of_heads(least_window, window):
    heads = razor_heads(least_window=least_window, compensation=False)
    assert [head.rule.full for head in heads] == [False] * 5 + [True]
    for head in heads[:-1]:
        expected = sorted({*range(4), *range(TOKENS - window, TOKENS)})
        assert head.rows.tolist() == expected
        assert head.fitted is None
    assert heads[-1].rows.numel() == TOKENS


def razor_heads(**parameters):
    policy = parse_policy("razor_attention", {"retrieval_ratio": 0.2, **parameters})
    return [head for plan in plans_of(policy, layers_of(11)) for head in plan.heads]


@pytest.mark.parametrize(("least_window", "dropped"), [(50, 96), (145, 1)])
def test_razor_attention_has_a_row_for_all_that_is_dropped(least_window, dropped):
    heads = razor_heads(least_window=least_window)
    keys = torch.cat([layer.k for layer in layers_of(11)]).double()
    values = torch.cat([layer.v for layer in layers_of(11)]).double()
    for head, k, v in zip(heads[:-1], keys, values, strict=False):
        window = range(TOKENS - least_window, TOKENS)
        assert head.rows.tolist() == [*range(5), *window]
        weights = torch.zeros(len(head.rows))
        weights[4] = math.log(dropped)
        torch.testing.assert_close(head.fitted.log_weights, weights)
        others = head.rows != 4
        for held, dense in ((head.fitted.keys, k), (head.fitted.values, v)):
            mean = dense[4 : 4 + dropped].mean(0)
            torch.testing.assert_close(held[4].double(), mean, atol=1e-6, rtol=0)
            assert torch.equal(held[others].double(), dense[head.rows[others]])
        # it stays, and the window slides
        *_, held = decoded(head, 30)
        assert held == [*range(5), *range(TOKENS + 30 - least_window, TOKENS + 30)]
    assert heads[-1].fitted is None


def test_razor_attention_compensates_nothing_where_nothing_is_dropped():
    assert all(head.fitted is None for head in razor_heads(least_window=146))


def test_reconstruction_has_one_threshold_for_all_heads():
    layers = layers_of(12)
    for layer in layers[1:]:
        layer.q.mul_(0.3)
    plans = planned("reconstruction", layers, sinks=0, floor_rows=1)
    peaks = torch.stack([repetition_peaks(layer, TOKENS).amax(1) for layer in layers])
    peaks[:, :, -1] = math.inf
    threshold = peaks.flatten().sort(descending=True).values[60 * 2 * LAYERS - 1]
    for plan, of_layer in zip(plans, peaks, strict=True):
        for head, scores in zip(plan.heads, of_layer, strict=True):
            assert head.rows.tolist() == (scores >= threshold).nonzero().squeeze(1).tolist()
    rows = [head.rows.numel() for plan in plans for head in plan.heads]
    assert max(rows) > min(rows) + 10


def _reference_shares(layer, head):
    """Return attention of a KV head's repeated queries to the prompt's rows, f64 `[m, T]`."""
    q, k = layer.q[2 * head : 2 * head + 2].double(), layer.k[head].double()
    return (q @ k.mT * SCALE).softmax(-1).view(-1, TOKENS)


def _lookback_scores(layer, head, distance, first, weights):
    """The definition, row by row, in float64; `weights` of the layer's query heads."""
    scores = torch.zeros(TOKENS, dtype=torch.float64)
    k, v = layer.k[head].double(), layer.v[head].double()
    seen = torch.zeros(TOKENS)
    of_group = slice(2 * head, 2 * head + 2)
    for q, weight in zip(layer.q[of_group].double(), weights[of_group].tolist(), strict=True):
        for i in range(first, TOKENS):
            shares = (k[: i + 1] @ q[i] * SCALE).softmax(0)
            far = max(0, i + 1 - distance)
            if far:
                given = (shares[:far] / shares[:far].sum()) @ v[:far]
                scores[:far] += (weight * shares[:far] * (v[:far] - given).norm(dim=1)).square()
                seen[:far] += 1
    return (scores / seen.clamp(min=1)).sqrt()


@pytest.mark.parametrize("sensitivity", [False, True])
def test_lookback_keeps_what_late_queries_read_from_afar(sensitivity):
    layers = layers_of(15)
    for layer in layers[1:]:
        layer.q.mul_(0.5)
    parameters = {"sinks": 2, "floor_rows": 1, "recent": 20, "distance": 12, "late_share": 0.4}
    plans = planned("lookback", layers, **parameters, sensitivity=sensitivity)
    known = calibration_of(layers).sensitivity
    weights = known if sensitivity else [torch.ones(4)] * LAYERS
    scores = torch.stack(
        [
            torch.stack([_lookback_scores(layer, h, 12, 90, of_layer) for h in range(2)])
            for layer, of_layer in zip(layers, weights, strict=True)
        ]
    )
    scores[:, :, :2] = scores[:, :, -20:] = math.inf
    threshold = scores.flatten().sort(descending=True).values[60 * 2 * LAYERS - 1]
    for plan, of_layer in zip(plans, scores, strict=True):
        for head, of_head in zip(plan.heads, of_layer, strict=True):
            assert head.rows.tolist() == (of_head >= threshold).nonzero().squeeze(1).tolist()


def test_lookback_may_forget_what_was_generated_long_ago():
    parameters = {"floor_rows": 1, "recent": 9, "distance": 12}
    layers = layers_of(17)
    for plan, plain in zip(
        planned("lookback", layers, **parameters, generated_window=5),
        planned("lookback", layers, **parameters),
        strict=True,
    ):
        for head, other in zip(plan.heads, plain.heads, strict=True):
            assert head.rows.tolist() == other.rows.tolist()
            positions = torch.cat([head.rows, torch.arange(TOKENS, TOKENS + 30)])
            kept = keep_mask(head.rule, positions, None, None, TOKENS + 30)
            latest = list(range(TOKENS + 25, TOKENS + 30))
            assert positions[kept].tolist() == [*head.rows.tolist(), *latest]
            assert keep_mask(other.rule, positions, None, None, TOKENS + 30).all()


def test_lookback_says_how_much_of_the_late_attention_its_rows_cover():
    (layer, *_) = layers = layers_of(16)
    plan, *_ = planned("lookback", layers, floor_rows=1, recent=9, distance=12, late_share=0.4)
    for number, head in enumerate(plan.heads):
        q, k = layer.q[2 * number : 2 * number + 2, 90:].double(), layer.k[number].double()
        ahead = torch.arange(90, TOKENS)[:, None] < torch.arange(TOKENS)
        shares = (q @ k.mT * SCALE).masked_fill(ahead, -math.inf).softmax(-1)
        expected = shares[:, :, head.rows].sum(-1).mean()
        assert head.attention_coverage == pytest.approx(float(expected), abs=1e-5)
        assert 0.2 < head.attention_coverage < 1


def test_attention_matching_has_one_threshold_for_all_heads():
    layers = layers_of(13)
    for layer in layers[1:]:
        layer.q.mul_(0.3)
    plans = planned("attention_matching", layers, sinks=0, floor_rows=1)
    peaks = torch.stack(
        [torch.stack([_reference_shares(layer, h).amax(0) for h in range(2)]) for layer in layers]
    )
    peaks[:, :, -1] = math.inf
    threshold = peaks.flatten().sort(descending=True).values[60 * 2 * LAYERS - 1]
    for plan, of_layer in zip(plans, peaks, strict=True):
        for head, scores in zip(plan.heads, of_layer, strict=True):
            assert head.rows.tolist() == (scores >= threshold).nonzero().squeeze(1).tolist()


def test_attention_matching_gives_what_the_whole_prompt_gave():
    layers = layers_of(14)
    for layer, plan in zip(layers, planned("attention_matching", layers), strict=True):
        for number, head in enumerate(plan.heads):
            shares, values = _reference_shares(layer, number), layer.v[number].double()
            wanted, kept = shares @ values, shares[:, head.rows]
            weighted = kept * head.fitted.log_weights.double().exp()
            plain = kept / kept.sum(1, keepdim=True) @ values[head.rows]
            given = weighted / weighted.sum(1, keepdim=True) @ head.fitted.values.double()
            assert (given - wanted).norm() < 0.6 * (plain - wanted).norm()
            # and the kept rows draw about as much as all rows did, which unweighted they do not
            assert (weighted.sum(1) - 1).norm() < 0.6 * (kept.sum(1) - 1).norm()
            assert head.attention_coverage == pytest.approx(float(kept.sum(1).mean()))


def test_cascading_leaves_one_of_ever_more_neighbours():
    torch.manual_seed(0)
    attention = torch.rand(2, 100)
    chosen = cascade(attention, 6, 3)
    for head in range(2):
        # six single tokens, six pairs, six groups of four, and nothing before these
        groups = [[j] for j in range(94, 100)]
        groups += [[j, j + 1] for j in range(82, 94, 2)]
        groups += [list(range(j, j + 4)) for j in range(58, 82, 4)]
        expected = {max(group, key=lambda j: float(attention[head, j])) for group in groups}
        assert set(chosen[head].nonzero().squeeze(1).tolist()) == expected


def test_cascading_keeps_its_cascade_and_thins_out_with_age():
    layers = layers_of(13)
    for layer, plan in zip(layers, planned("cascading", layers, window=TOKENS), strict=True):
        votes = votes_of(layer, TOKENS)
        held = cascade(votes, 14, 4)
        for head, kept in enumerate(plan.heads):
            cascaded = set(held[head].nonzero().squeeze(1).tolist())
            assert set(range(TOKENS - 14, TOKENS)) <= cascaded
            # the rest of the budget of 60 rows goes to the rows of most attention
            always = cascaded | set(range(4))
            expected = always | best(votes[head], 60 - len(always), set(range(TOKENS)) - always)
            assert set(kept.rows.tolist()) == expected


def test_citrus_lets_the_instruction_vote_once_for_all_heads():
    layers = layers_of(14)
    for layer, plan in zip(layers, planned("citrus", layers, instruction_tokens=12), strict=True):
        votes = votes_of(layer, 12).mean(0)
        always = {*range(4), *range(TOKENS - 12, TOKENS)}
        expected = always | best(votes, 44, set(range(TOKENS)) - always)
        assert [set(head.rows.tolist()) for head in plan.heads] == [expected, expected]


def matrix_entropy(x, size=32):
    """Compute the paper's matrix entropy of `x` `[n, D]`."""
    centred = x.double() - x.double().mean(0)
    rows = centred / centred.norm(dim=1, keepdim=True)
    spectrum = torch.linalg.svdvals(rows).square() / len(x)
    shares = (spectrum / spectrum.sum()).sort(descending=True).values[:size]
    return float(-(shares * shares.log()).sum()) / math.log(x.shape[1])


def test_uncomp_measures_what_queries_carry():
    (layer,) = layers_of(20, TOKENS, (None,))
    flat = torch.outer(torch.randn(TOKENS), torch.randn(16))
    found = matrix_entropies(torch.stack([layer.q[0], flat, torch.ones_like(flat)]))
    assert found.tolist() == pytest.approx([matrix_entropy(layer.q[0]), 0.0, 0.0], abs=1e-6)
    wide = torch.randn(1, 400, 64)
    assert float(matrix_entropies(wide)) == pytest.approx(matrix_entropy(wide[0]))
    assert float(matrix_entropies(wide)) < matrix_entropy(wide[0], 64)


def test_uncomp_gives_more_to_heads_whose_queries_carry_more():
    layers = layers_of(21)
    for number, layer in enumerate(layers):
        # one head's queries are nearly all along one line
        poor = number % 2
        line = torch.outer(torch.randn(TOKENS), torch.randn(16))
        layer.q[2 * poor : 2 * poor + 2] = line + 0.05 * layer.q[2 * poor : 2 * poor + 2]
    parameters = {"window": 16, "pool": 1, "spread": 0.25}
    for number, (layer, plan) in enumerate(
        zip(layers, planned("uncomp", layers, **parameters), strict=True)
    ):
        votes = votes_of(layer, 16)
        for head, kept in enumerate(plan.heads):
            count = 45 if head == number % 2 else 75
            always = {*range(4), *range(TOKENS - 16, TOKENS)}
            top = best(votes[head], count - 20, set(range(TOKENS)) - always)
            assert set(kept.rows.tolist()) == always | top


def test_uncomp_groups_fall_by_one_step_and_are_of_like_size():
    assert group_shares(8, 4, 0.3) == pytest.approx([1.3, 1.3, 1.1, 1.1, 0.9, 0.9, 0.7, 0.7])
    assert group_shares(3, 2, 0.5) == pytest.approx([1.5, 1.5, 0.5])
    assert group_shares(3, 1, 0.5) == [1.0] * 3
    assert group_shares(2, 32, 0.5) == pytest.approx([1.5, 0.5])


def decayed_votes(layer, decay):
    """Each column's attention, later queries counting more; mean over the group, f64 `[H, T]`."""
    logits = layer.q.double() @ layer.k.double().repeat_interleave(2, 0).mT * SCALE
    future = torch.arange(TOKENS)[:, None] < torch.arange(TOKENS)
    mass = logits.masked_fill(future, -torch.inf).softmax(-1)
    weights = decay ** torch.arange(TOKENS - 1, -1, -1).double()
    return (weights[:, None] * mass).sum(1).view(2, 2, TOKENS).mean(1)


@pytest.mark.parametrize("residual", [1, 3])
def test_zeromerge_merges_what_is_neither_late_nor_heavy(residual):
    layers = layers_of(22)
    parameters = {"residual_rows": residual, "alpha": 0.6, "decay": 0.9}
    for layer, plan in zip(layers, planned("zeromerge", layers, **parameters), strict=True):
        votes = decayed_votes(layer, 0.9)
        for number, head in enumerate(plan.heads):
            always = {*range(4), *range(TOKENS - 24, TOKENS)}
            others = set(range(TOKENS)) - always
            heavy = best(votes[number], 60 - 28 - residual, others)
            rest = sorted(others - heavy)
            slots = rest[:residual]
            assert set(head.rows.tolist()) == always | heavy | set(slots)
            sizes = []
            for slot, position in enumerate(slots):
                group = [j for i, j in enumerate(rest) if i * residual // len(rest) == slot]
                row = head.rows.tolist().index(position)
                for held, dense in (
                    (head.fitted.keys, layer.k[number]),
                    (head.fitted.values, layer.v[number]),
                ):
                    torch.testing.assert_close(held[row], dense[group].mean(0))
                expected = 0.6 * math.log(len(group))
                assert float(head.fitted.log_weights[row]) == pytest.approx(expected)
                sizes.append(len(group))
            assert sum(sizes) == 150 - 60 + residual
            assert int((head.fitted.log_weights != 0).sum()) == residual


def test_zeromerge_holds_its_size_and_its_residual_rows_while_decoding():
    for plan in planned("zeromerge", residual_rows=2):
        for head in plan.heads:
            residual = head.rows[head.fitted.log_weights > 0].tolist()
            for step, held in enumerate(decoded(head, 100), 1):
                assert len(held) == 60
                assert {*range(4), *residual} <= set(held)
                assert set(range(TOKENS + step - 24, TOKENS + step)) <= set(held)


def test_zeromerge_looks_no_further_back_than_its_decay_reaches():
    request = parse_policy("zeromerge", {"decay": 0.5}).profile_request(1000, layers_of(0)[0].shape)
    assert (request.late_queries, round(request.late_share * 1000)) == (14, 14)


def test_kvmerger_joins_the_neighbours_that_are_most_alike():
    layers = layers_of(23)
    for layer in layers:
        # keys that drift, so that neighbours are more or less alike
        layer.k.copy_(torch.cumsum(layer.k, 1) / torch.arange(1, TOKENS + 1)[:, None] ** 0.5)
    parameters = {"recent_ratio": 0.3, "heavy_ratio": 0.2}
    for layer, plan in zip(layers, planned("kvmerger", layers, **parameters), strict=True):
        votes = votes_of(layer, TOKENS)
        for number, head in enumerate(plan.heads):
            k, v = layer.k[number].double(), layer.v[number].double()
            apart = {*range(4), *range(TOKENS - 18, TOKENS)}
            apart |= best(votes[number], 12, set(range(TOKENS)) - apart)
            links = [j for j in range(1, TOKENS) if not {j - 1, j} & apart]
            alike = {j: float(torch.cosine_similarity(k[j - 1], k[j], dim=0)) for j in links}
            joined = sorted(links, key=lambda j: -alike[j])[: TOKENS - 60]
            runs = [[0]]
            for j in range(1, TOKENS):
                if j in joined:
                    runs[-1].append(j)
                else:
                    runs.append([j])
            assert len(runs) == 60
            for row, run in enumerate(runs):
                pivot = max(run, key=lambda j: float(votes[number, j]))
                assert int(head.rows[row]) == pivot
                distances = (k[run] - k[pivot]).norm(dim=1)
                width = distances.mean() / math.sqrt(2)
                weights = (
                    torch.exp(-distances.square() / (2 * width**2))
                    if len(run) > 1
                    else torch.ones(1, dtype=torch.float64)
                )
                weights /= weights.sum()
                merged = head.fitted.keys[row].double(), head.fitted.values[row].double()
                torch.testing.assert_close(merged[0], weights @ k[run], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(merged[1], weights @ v[run], atol=1e-4, rtol=1e-4)
                assert float(head.fitted.log_weights[row]) == pytest.approx(math.log(len(run)))


def test_kvmerger_loses_no_token_that_is_still_seen():
    for window in (None, 60):
        layers = layers_of(24, TOKENS, (window,) * LAYERS)
        for plan in planned("kvmerger", layers, budget=0.3):
            for head in plan.heads:
                seen = float(head.fitted.log_weights.exp().sum())
                assert seen == pytest.approx(window or TOKENS, rel=1e-5)


def test_vlcache_gives_layers_rows_in_proportion_to_their_density():
    layers = layers_of(15)
    for number, layer in enumerate(layers):
        layer.q.mul_(2.0**-number)
    densities = []
    for layer in layers:
        logits = layer.q.double() @ layer.k.double().repeat_interleave(2, 0).mT * SCALE
        hidden = torch.arange(TOKENS)[:, None] < torch.arange(TOKENS)
        mass = logits.masked_fill(hidden, -torch.inf).softmax(-1)[:, -20:]
        looked_at = mass >= 0.3 * mass.amax(-1, keepdim=True)
        seen = (~hidden[-20:]).sum(-1)
        densities.append(float((looked_at.sum(-1) / seen).mean()))
    plans = planned("vlcache", layers, window=20, threshold=0.3, floor_rows=1)
    rows = [plan.heads[0].rows.numel() for plan in plans]
    assert rows[0] < rows[1] < rows[2]
    assert rows == pytest.approx([180 * d / sum(densities) for d in densities], abs=2)


def test_every_policy_has_a_test_of_its_behaviour():
    tested = {name for name in globals() if name.startswith("test_")}
    elsewhere = {"full", "fastgen", "coverage"}
    for name, _ in known_policies():
        assert name in elsewhere or any(test.startswith(f"test_{name}") for test in tested), name
