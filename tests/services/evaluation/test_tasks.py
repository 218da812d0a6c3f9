"""Generated tasks: of the size asked for, solvable from their text, always the same."""

import pytest

from services.evaluation.conversations import TURNS, conversations
from services.evaluation.needles import needles
from services.evaluation.ruler import FAMILIES, ruler
from services.evaluation.tasks import Question, Writer


@pytest.fixture(scope="module")
def writer(served):
    return Writer(served)


def test_there_are_needles_enough_over_a_grid(writer):
    tasks = list(needles(writer))
    assert len(tasks) >= 60
    assert len({task.name for task in tasks}) == len(tasks)
    assert {len(task.context) for task in tasks} == {1500, 2000, 2500, 3000, 3500, 4000}
    assert len({task.depth for task in tasks}) == 12
    assert tasks == list(needles(writer))


def test_a_needle_stands_at_its_depth_and_nowhere_else(served, writer):
    for task in needles(writer, (600, 1500)):
        (question,) = task.questions
        (answer,) = question.answers
        text = served.tokenizer.decode(task.context)
        places = [n for n in range(len(text)) if text.startswith(answer, n)]
        assert places, answer
        # a fruit may occur in the manual; a number of four digits and the rest may not
        assert answer.isalpha() or len(places) == 1
        assert any(abs(place / len(text) - task.depth) < 0.1 for place in places)
        assert answer not in served.tokenizer.decode(question.token_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_of_rulers_families_is_in_the_text(served, writer, family):
    tasks = [task for task in ruler(writer, 2000, 3) if task.family == family]
    assert len({task.context for task in tasks}) == 3
    for task in tasks:
        assert len(task.context) == 2000
        text = served.tokenizer.decode(task.context)
        (question,) = task.questions
        assert all(answer in text for answer in question.answers)
        wanted = served.tokenizer.encode(", ".join(question.answers), begins=False)
        assert question.answer_tokens > len(wanted)


def test_the_words_asked_for_are_the_most_frequent(served, writer):
    for task in ruler(writer, 2000, 3):
        if task.family in ("common words", "frequent words"):
            words = served.tokenizer.decode(task.context).split()[:-1]
            answers = set(task.questions[0].answers)
            by_count = sorted(set(words), key=words.count, reverse=True)
            assert set(by_count[: len(answers)]) == answers, task.name


def test_each_turn_asks_for_something_else(served, writer):
    for task in conversations(writer, 800, 2):
        assert len(task.context) == 800
        text = served.tokenizer.decode(task.context)
        answers = [answer for question in task.questions for answer in question.answers]
        assert len(set(answers)) == TURNS
        assert all(answer in text for answer in answers)


def test_a_score_is_the_share_of_the_answers_said():
    question = Question((1,), ("4711", "Oslo"), 8)
    assert question.score("it is oslo.") == 0.5
    assert question.score("4711 and Oslo") == 1
    assert question.score("no idea") == 0
