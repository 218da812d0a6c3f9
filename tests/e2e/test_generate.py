"""A prompt becomes tokens across two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from headwise import AsyncClient, Client, FinishReason, Message, Policy, Sampling
from services.runtime.model.served_model import load_tokenizer
from tests.conftest import Pair
from tests.observe import scrape, wait_until

pytestmark = pytest.mark.processes

_PROMPT = "The with statement is used to wrap the execution of a block. " * 8


def test_deltas_add_up_and_the_result_reports_what_was_measured(tiny_pair: Pair) -> None:
    with Client(tiny_pair[1].target) as client:
        generation = client.generate(_PROMPT, policy="full", max_tokens=12, report_heads=True)
        deltas = list(generation)
    result = generation.result
    assert len([t for d in deltas for t in d.token_ids]) == result.usage.completion_tokens == 12
    assert result.finish_reason is FinishReason.LENGTH
    memory = result.prompt_memory
    cached = result.usage.prompt_tokens - 1
    # 2 layers of 2 KV heads, keys and values of 16 float32 each
    assert memory.dense_bytes == cached * 2 * 2 * 2 * 16 * 4
    assert memory.rows_kept == memory.rows_dense == cached * 4
    assert memory.resident_bytes >= memory.dense_bytes
    assert memory.wire_bytes >= memory.dense_bytes
    assert [h.rows for h in result.heads] == [cached] * 4
    assert memory.head_classes == {"full": 4}


def test_a_compact_policy_keeps_ships_and_holds_less(tiny_pair: Pair) -> None:
    with Client(tiny_pair[1].target) as client:
        policy = Policy("coverage", {"recovery": 0.5})
        result = client.generate(_PROMPT, policy=policy, max_tokens=4).result
    memory = result.prompt_memory
    assert memory.rows_kept < memory.rows_dense
    assert memory.attention_coverage >= 0.5
    assert result.policy == "coverage"
    assert result.policy_parameters["recovery"] == 0.5


def test_a_preset_is_described_used_and_recorded_as_its_policy(tiny_pair: Pair) -> None:
    with Client(tiny_pair[1].target) as client:
        (described,) = [p for p in client.describe().policies if p.name == "balanced"]
        result = client.generate(_PROMPT, policy="balanced", max_tokens=4).result
    assert described.preset_of == result.policy == "lookback"
    assert described.defaults == result.policy_parameters
    assert result.policy_parameters["retrieval_ratio"] > 0


def test_pages_are_back_when_an_answer_has_ended(tiny_pair: Pair) -> None:
    with Client(tiny_pair[1].target) as client:
        client.generate(_PROMPT, max_tokens=3).text()
    url = tiny_pair[1].metrics_url
    wait_until(lambda: scrape(url)["headwise_sequences"] == 0, 2, "the sequence to leave")
    assert scrape(url)["headwise_pool_rows"] == 0


@pytest.mark.parametrize("prompt", [[5], [5, 9], "x", [Message("user", "hello")]])
def test_prompts_of_every_kind_and_of_one_token(
    tiny_pair: Pair, prompt: str | list[int] | list[Message]
) -> None:
    with Client(tiny_pair[1].target) as client:
        assert client.generate(prompt, max_tokens=2).result.usage.completion_tokens >= 1


def test_equal_seeds_give_equal_tokens_and_other_seeds_others(tiny_pair: Pair) -> None:
    def sample(seed: int) -> list[int]:
        with Client(tiny_pair[1].target) as client:
            sampling = Sampling(temperature=1.5, top_k=50, top_p=0.95, seed=seed)
            answer = client.generate(_PROMPT, sampling=sampling, max_tokens=24, ignore_eos=True)
            return [t for delta in answer for t in delta.token_ids]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(tiny_pair: Pair) -> None:
    with Client(tiny_pair[1].target) as client:
        whole = client.generate(_PROMPT, max_tokens=24, ignore_eos=True).text()
        stop = whole[len(whole) // 2 :][:3]
        generation = client.generate(_PROMPT, max_tokens=24, ignore_eos=True, stop=[stop])
        assert generation.text() == whole[: whole.index(stop)]
        assert generation.result.finish_reason is FinishReason.STOP


def test_a_stop_token_ends_the_answer(tiny_pair: Pair) -> None:
    with Client(tiny_pair[1].target) as client:
        tokens = [t for d in client.generate(_PROMPT, max_tokens=8) for t in d.token_ids]
        generation = client.generate(_PROMPT, max_tokens=8, stop_token_ids=[tokens[3]])
        stopped = [t for d in generation for t in d.token_ids]
    assert stopped == tokens[: tokens.index(tokens[3]) + 1]
    assert generation.result.finish_reason is FinishReason.STOP


async def test_the_async_client_gives_the_same_answers_at_once(tiny_pair: Pair) -> None:
    import asyncio

    with Client(tiny_pair[1].target) as client:
        alone = client.generate(_PROMPT, policy="full", max_tokens=16).text()
    async with AsyncClient(tiny_pair[1].target) as client:
        answers = await asyncio.gather(
            *(client.generate(_PROMPT, policy="full", max_tokens=16).text() for _ in range(8))
        )
    assert set(answers) == {alone}


def test_both_services_describe_the_same_model(tiny_pair: Pair) -> None:
    with Client(tiny_pair[1].target) as client:
        description = client.describe()
    assert description.model.architecture == "llama"
    assert [layer.kv_heads for layer in description.model.layers] == [2, 2]
    assert {p.name for p in description.policies} >= {"full", "fastgen", "coverage"}
    assert description.default_policy in {p.name for p in description.policies}


def test_penalised_greedy_tokens_are_those_of_transformers(
    tiny_pair: Pair, tiny_model: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    prompt = [int(token) for token in torch.randint(2, 500, (400,), generator=torch.manual_seed(4))]
    whole = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=24, repetition_penalty=2.0
    )
    plain = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)
    with Client(tiny_pair[1].target) as client:
        sampling = Sampling(repetition_penalty=2.0)
        answer = client.generate(prompt, policy="full", sampling=sampling, max_tokens=24)
        tokens = [t for delta in answer for t in delta.token_ids]
    assert tokens == whole[0, len(prompt) :].tolist() != plain[0, len(prompt) :].tolist()


def test_a_stop_text_that_is_a_special_token_ends_the_answer(
    tiny_pair: Pair, tiny_model: Path
) -> None:
    end = load_tokenizer(str(tiny_model)).special_token_id("<|im_end|>")
    assert end is not None
    with Client(tiny_pair[1].target) as client:
        # a seed whose answer holds the token somewhere within
        for seed in range(100):
            sampled = {"temperature": 3.0, "seed": seed, "max_tokens": 64, "ignore_eos": True}
            tokens = [t for d in client.generate(_PROMPT, **sampled) for t in d.token_ids]
            if end in tokens[1:-1]:
                break
        generation = client.generate(_PROMPT, **sampled, stop=["<|im_end|>"])
        stopped = [token for delta in generation for token in delta.token_ids]
    assert stopped == tokens[: tokens.index(end) + 1]
    assert generation.result.finish_reason is FinishReason.STOP
    assert "<|im_end|>" not in generation.result.text
