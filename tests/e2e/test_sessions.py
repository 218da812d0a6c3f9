"""Turns, forks and several answers, through both processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headwise import (
    AsyncClient,
    Client,
    InvalidRequest,
    Message,
    NotFound,
    Policy,
    Refused,
    Result,
    Sampling,
)
from services.runtime.model.served_model import load_tokenizer
from tests.conftest import Pair, running_pair
from tests.observe import scrape, wait_until

pytestmark = pytest.mark.processes

_TOKENS = 24
_TURNS = (
    [Message("system", "Say little."), Message("user", "What is a compound statement in Python?")],
    [Message("user", "And which of them has an else clause, and when is it executed?")],
    [Message("user", "Thanks. " * 90)],
)


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def _continue(reference: Any, tokens: list[int], count: int) -> list[int]:
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        found = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count
        )
    answer: list[int] = found[0, len(tokens) :].tolist()
    return answer


def _ask(client: Client, prompt: Any, **options: Any) -> tuple[list[int], Result]:
    generation = client.generate(prompt, max_tokens=_TOKENS, ignore_eos=True, **options)
    tokens = [token for delta in generation for token in delta.token_ids]
    return tokens, generation.result


def test_three_turns_are_the_concatenated_conversation(
    tiny_pair: Pair, tiny_model: Path, reference: Any
) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    seen: list[int] = []
    with Client(tiny_pair[1].target) as client:
        session: dict[str, Any] = {"policy": "full", "session_ttl_seconds": 60}
        for messages in _TURNS:
            told = [(message.role, message.content) for message in messages]
            turn = (
                tokenizer.encode_turn(told, after=seen[-1]) if seen else tokenizer.encode_chat(told)
            )
            held = len(seen)
            seen += turn
            answer, result = _ask(client, messages, **session)
            assert answer == _continue(reference, seen, _TOKENS)
            usage = result.usage
            assert (usage.session_tokens, usage.prompt_tokens) == (held, len(turn))
            seen += answer
            session = {"session_id": result.session_id}
        assert client.sessions.describe(result.session_id).tokens == len(seen)
        client.sessions.release(result.session_id)


def test_a_turn_of_a_chat_ends_the_answer_as_the_template_does(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    end = tokenizer.eos_token_id
    assert end is not None
    conversation = [("user", "One?"), ("assistant", "Yes."), ("user", "Two?")]
    whole = tokenizer.encode_chat(conversation)
    turn = tokenizer.encode_turn([("user", "Two?")], after=5)
    assert whole[-len(turn) :] == turn
    assert turn[0] == end
    assert tokenizer.encode_turn([("user", "Two?")], after=end) == turn[1:]


def test_a_fork_and_its_origin_continue_independently(tiny_pair: Pair, reference: Any) -> None:
    prompt = [5, 9, 33, 7, 100, 42]
    with Client(tiny_pair[1].target) as client:
        answer, result = _ask(client, prompt, policy="full", session_ttl_seconds=60)
        fork = client.sessions.fork(result.session_id)
        assert fork.tokens == len(prompt) + _TOKENS
        for session_id, turn in ((result.session_id, [8, 8]), (fork.session_id, [61, 3, 2])):
            found, _ = _ask(client, turn, session_id=session_id)
            assert found == _continue(reference, prompt + answer + turn, _TOKENS)
            client.sessions.release(session_id)
        assert client.sessions.list() == []


async def test_a_cancelled_turn_leaves_the_session_as_it_was(
    tiny_pair: Pair, reference: Any
) -> None:
    prompt = [5, 9, 33, 7]
    async with AsyncClient(tiny_pair[1].target) as client:
        first = client.generate(
            prompt, policy="full", max_tokens=8, ignore_eos=True, session_ttl_seconds=60
        )
        answer = [token async for delta in first for token in delta.token_ids]
        session_id = (await first.result()).session_id
        turn = client.generate([77] * 40, session_id=session_id, max_tokens=4000, ignore_eos=True)
        async for _ in turn:
            with pytest.raises(Refused) as caught:
                await client.generate([1], session_id=session_id).result()
            assert caught.value.reason == "SESSION_BUSY"
            with pytest.raises(Refused):
                await client.sessions.release(session_id)
            break
        turn.cancel()
        while (await client.sessions.describe(session_id)).busy:
            pass
        again = client.generate([3], session_id=session_id, max_tokens=8, ignore_eos=True)
        tokens = [token async for delta in again for token in delta.token_ids]
        assert tokens == _continue(reference, [*prompt, *answer, 3], 8)
        await client.sessions.release(session_id)


@pytest.mark.parametrize("policy", [Policy("full"), Policy("coverage", {"recovery": 0.8})])
def test_several_answers_to_one_prompt_differ_by_their_seed(
    tiny_pair: Pair, policy: Policy
) -> None:
    prompt = [(7 * n * n) % 500 + 2 for n in range(120)]
    options: dict[str, Any] = {"policy": policy, "max_tokens": 12, "ignore_eos": True}
    with Client(tiny_pair[1].target) as client:
        generation = client.generate(
            prompt, sampling=Sampling(temperature=1.0, seed=40, n=3, logprobs=2), **options
        )
        answers: dict[int, list[int]] = {0: [], 1: [], 2: []}
        for delta in generation:
            answers[delta.index] += delta.token_ids
            assert len(delta.logprobs) == len(delta.token_ids)
        assert [result.index for result in generation.results] == [0, 1, 2]
        for index, answer in answers.items():
            alone = client.generate(
                prompt, sampling=Sampling(temperature=1.0, seed=40 + index), **options
            )
            assert [token for delta in alone for token in delta.token_ids] == answer
    assert len({tuple(answer) for answer in answers.values()}) == 3


def test_errors_about_sessions_name_the_reason(tiny_pair: Pair) -> None:
    with Client(tiny_pair[1].target) as client:
        with pytest.raises(NotFound) as gone:
            client.generate([1], session_id="nonsense").text()
        assert (gone.value.reason, gone.value.field) == ("SESSION_UNKNOWN", "session_id")
        _, result = _ask(client, [5, 6], session_ttl_seconds=60)
        with pytest.raises(InvalidRequest) as policy:
            client.generate([1], session_id=result.session_id, policy="full").text()
        assert policy.value.field == "policy"
        # what was refused has not made it busy for ever
        client.sessions.release(result.session_id)
        with pytest.raises(NotFound) as released:
            client.sessions.fork(result.session_id)
        assert released.value.reason == "SESSION_RELEASED"


def test_a_session_expires_and_leaves_nothing(tiny_pair: Pair) -> None:
    with Client(tiny_pair[1].target) as client:
        _, result = _ask(client, [5, 6, 7], session_ttl_seconds=0.05)
        url = tiny_pair[1].metrics_url
        wait_until(lambda: scrape(url)["headwise_sessions"] == 0, 5, "the session to expire")
        with pytest.raises(NotFound) as caught:
            client.sessions.describe(result.session_id)
        assert caught.value.reason == "SESSION_EXPIRED"
        assert scrape(url)["headwise_pool_pages{state=used}"] == 0


def test_a_full_session_says_that_it_is_full(tiny_model: Path) -> None:
    with (
        running_pair(str(tiny_model), decode_arguments=("--max-sequence-tokens", "24")) as pair,
        Client(pair[1].target) as client,
    ):
        prompt = list(range(2, 18))
        first = client.generate(
            prompt, max_tokens=8, ignore_eos=True, session_ttl_seconds=60
        ).result
        with pytest.raises(InvalidRequest, match="the session has 24 tokens") as caught:
            client.generate([5], session_id=first.session_id).text()
        assert (caught.value.reason, caught.value.field) == ("SEQUENCE_TOO_LONG", "session_id")
        assert "-1" not in str(caught.value)
