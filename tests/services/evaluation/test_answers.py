"""Answers from a cache, compared with dense greedy decoding."""

import pytest
import torch

from kvstore.policies import parse_policy
from kvstore.policies.full import Full
from services.evaluation.answers import ask_apart, ask_aware, ask_in_turn, aware_prompt
from services.evaluation.continuation import sample_continuation
from services.evaluation.prompt_record import PromptRecord
from services.evaluation.tasks import Question, Task
from services.evaluation.teacher_forcing import dense_logits

CONTEXT = tuple((7 * n * n) % 500 for n in range(60))
ASKED = (5, 99, 250)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def greedy(served, prompt, tokens):
    """The exact model's answer, the whole text anew for every token."""
    answer = []
    for _ in range(tokens):
        text = (*prompt, *answer)
        answer.append(int(dense_logits(served, text[:-1], text[-1:])[0].argmax()))
    return tuple(answer)


def task(served, *asked):
    """Questions whose right answers are what the exact model says to the first of them."""
    said = served.tokenizer.decode(greedy(served, (*CONTEXT, *asked[0]), 6))
    return Task("t", "t", CONTEXT, tuple(Question(ids, (said,), 6) for ids in asked))


def test_the_full_cache_answers_as_the_exact_model_does(served):
    one = task(served, ASKED)
    compacted = PromptRecord(served, CONTEXT).compact_timed(Full())
    assert ask_apart(served, one, compacted).scores == (1,)
    aware = PromptRecord(served, aware_prompt(one)).compact_timed(Full())
    assert ask_aware(served, one, aware).scores == (1,)
    # and a cache without the prompt does not
    little = parse_policy("streaming_llm", {"budget": "2 rows", "floor_rows": 0, "sinks": 1})
    assert ask_apart(served, one, PromptRecord(served, CONTEXT).compact_timed(little)).score == 0


def test_questions_apart_know_nothing_of_one_another_those_in_turn_do(served):
    twice = task(served, ASKED, ASKED)
    compacted = PromptRecord(served, CONTEXT).compact_timed(Full())
    assert ask_apart(served, twice, compacted).scores == (1, 1)
    first, second = ask_in_turn(served, twice, compacted).scores
    answer = served.tokenizer.encode(" " + twice.questions[0].answers[0], begins=False)
    said = greedy(served, (*CONTEXT, *ASKED, *answer, *ASKED), 6)
    assert first == 1
    assert second == twice.questions[1].score(served.tokenizer.decode(said))


def test_a_continuation_is_drawn_from_the_exact_models_predictions(served):
    drawn = sample_continuation(served, PromptRecord(served, CONTEXT), CONTEXT, 12)
    assert len(drawn.continuation) == len(drawn.targets) == 12
    generator = torch.Generator().manual_seed(11)
    text = CONTEXT
    for token in (*drawn.continuation, drawn.targets[-1]):
        probabilities = dense_logits(served, text[:-1], text[-1:])[0].softmax(-1)
        assert int(torch.multinomial(probabilities, 1, generator=generator)) == token
        text = (*text, token)


def test_seconds_and_bytes_stand_beside_a_score(served):
    compacted = PromptRecord(served, CONTEXT).compact_timed(Full())
    values = ask_apart(served, task(served, ASKED), compacted).values
    assert values["rows"] == 1
    assert values["kept_bytes"] == sum(layer.nbytes for layer in compacted.layers)
    seconds = ("prefill_seconds", "compact_seconds", "load_seconds", "answer_seconds")
    assert all(values[what] > 0 for what in seconds)
