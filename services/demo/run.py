"""The steps of the demo, in order."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence

from rich.console import Console

from headwise import Client, Policy
from headwise.commands.terminal_text import without_controls
from services.demo.document import question_about, read_document
from services.demo.figures import Answered, write_figures
from services.demo.processes import running_service
from services.demo.save import save_prefilled
from services.pictures.heads import HeadCell, head_map, legend
from services.pictures.result import result_table
from services.runtime.model.served_model import load_tokenizer

# what the compact answer is compared with
_FULL = Policy("full")


@dataclasses.dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of the demo."""

    model: str
    model_cache: pathlib.Path
    policy: Policy
    prompt_file: pathlib.Path | None
    question: str
    max_tokens: int
    json_file: pathlib.Path | None
    save_file: pathlib.Path | None


def run_demo(options: DemoOptions, console: Console) -> None:
    """Start both services, ask twice, show what was saved."""
    with console.status("preparing the model (converted once, then cached)"):
        tokenizer = load_tokenizer(options.model, cache_dir=options.model_cache)
        document = read_document(options.prompt_file, lambda text: len(tokenizer.encode(text)))
        message = question_about(document, options.question)
        token_ids = tokenizer.encode_chat([("user", message)])
    with contextlib.ExitStack() as stack:
        model = ["--model", options.model, "--model-cache", str(options.model_cache)]
        with console.status("starting prefill and decode as processes of their own"):
            prefill = stack.enter_context(running_service("prefill", model))
            decode = stack.enter_context(
                running_service("decode", [*model, "--prefill", prefill.target])
            )
        console.print(f"prefill {prefill.target} (pid {prefill.process.pid}) → ", end="")
        console.print(f"decode {decode.target} (pid {decode.process.pid})\n")
        client = stack.enter_context(Client(decode.target))
        compact = _ask(client, token_ids, options.policy, options.max_tokens, console)
        answers = {compact.result.policy: compact}
        if "full" not in answers:
            answers["full"] = _ask(client, token_ids, _FULL, options.max_tokens, console)
        if options.save_file:
            save_prefilled(prefill.target, token_ids[:-1], options.policy, options.save_file)
    _show(answers, compact, console)
    if options.json_file:
        write_figures(options.json_file, answers)
        console.print(f"figures written to {options.json_file}")
    if options.save_file:
        console.print(f"cache written to {options.save_file}: headwise inspect it")


def _ask(
    client: Client, token_ids: Sequence[int], policy: Policy, max_tokens: int, console: Console
) -> Answered:
    console.print(
        f"[bold]{policy.name or 'default policy'}[/bold], {len(token_ids)} prompt tokens: reading …"
    )
    generation = client.generate(token_ids, policy=policy, max_tokens=max_tokens, report_heads=True)
    text = ""
    for delta in generation:
        text += delta.text
        console.print(without_controls(delta.text), end="", markup=False, highlight=False)
    console.print("\n")
    return Answered(text, generation.result)


def _show(answers: dict[str, Answered], compact: Answered, console: Console) -> None:
    result = compact.result
    cells = [HeadCell(h.layer, h.head, h.head_class, h.rows) for h in result.heads]
    console.print(head_map(cells, result.usage.prompt_tokens - 1))
    console.print(legend(sorted(result.prompt_memory.head_classes.items())))
    results = {name: answer.result for name, answer in answers.items()}
    console.print(result_table(results, "measured on this run"))
