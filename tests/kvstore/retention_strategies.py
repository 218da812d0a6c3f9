"""Random retention rules, every field of them in play."""

from __future__ import annotations

from hypothesis import strategies as st

from kvstore.rules import RetentionRule, ScoreUpdate, TokenClass


@st.composite
def rules(draw: st.DrawFn) -> RetentionRule:
    update = draw(st.sampled_from(ScoreUpdate))
    return RetentionRule(
        full=draw(st.sampled_from([False, False, False, True])),
        horizon=draw(st.sampled_from([0, 0, 1, 5, 30])),
        protected=draw(st.sampled_from([TokenClass(bits) for bits in range(4)])),
        sinks=draw(st.integers(0, 4)),
        window=draw(st.sampled_from([0, 0, 1, 4, 12])),
        floor_rows=draw(st.sampled_from([0, 0, 1, 8])),
        generated_from=draw(st.integers(0, 30)),
        generated_window=draw(st.sampled_from([0, 0, 3, 10])),
        budget_rows=draw(st.sampled_from([0, 0, 1, 6, 20])),
        budget_ratio=draw(st.sampled_from([0.0, 0.1, 0.3, 0.5])),
        budget_beyond=draw(st.booleans()),
        score_update=update,
        score_decay=draw(st.sampled_from([0.5, 0.9])) if update is ScoreUpdate.DECAYED else 1.0,
    )
