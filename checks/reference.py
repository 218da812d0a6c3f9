"""Write the reference pages of the documents from the code: `python -m checks.reference`.

`--check` writes nothing, and exits with 1 where a committed page differs from the code.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import json
import pathlib
import re
import sys
import types
import typing
from collections import defaultdict
from collections.abc import Iterator

import click

import headwise
from checks.error_reasons import MEANINGS

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- Written by `python -m checks.reference`. Change the code, then run it again. -->\n"

_REASON = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
# a lease or session that ended, and whose reason a later call gets
_GONE = ("LEASE_", "SESSION_")
_METRICS = ("services/runtime/process/metrics.py", "services/prefill/store/store_watch.py")


def pages() -> dict[str, str]:
    """The text of every generated page by its file name."""
    return {
        "client.md": client_page(),
        "commands.md": commands_page(),
        "errors.md": errors_page(),
        "metrics.md": metrics_page(),
    }


def commands_page() -> str:
    """Every command of `headwise` with every option."""
    parts = [
        NOTE,
        "# Commands and options\n",
        "The options of `prefill` and `decode` are environment variables too: a flag wins over "
        "its `HEADWISE_…` variable, that over a configuration file in TOML or YAML, and that over "
        "the default. Show what is in force, and where each value comes from:\n",
        "```console\n$ headwise decode --print-config\n```\n",
    ]
    for path, command in commands():
        parts += _command_section(path, command)
    return "\n".join(parts)


def commands() -> list[tuple[str, click.Command]]:
    """Every command with its whole name, such as `headwise cache keep`."""
    from services.commands import command_line

    return list(_commands("headwise", command_line))


def _commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from _commands(f"{path} {name}", child)
    else:
        yield path, command


def _command_section(path: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    text = inspect.cleandoc(command.help or "").replace("\n\n", "\n")
    rows = [_option_row(p) for p in command.params if isinstance(p, click.Option) and not p.hidden]
    table = ["| option | default | meaning |", "|---|---|---|", *rows]
    return [f"## {path}\n", f"```text\n{usage}\n```\n", text + "\n", "\n".join(table) + "\n"]


def _option_row(option: click.Option) -> str:
    names = " ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    variable = f" (`{option.envvar}`)" if option.envvar else ""
    text = " ".join((option.help or "").split())
    return f"| {names} | {_default(option)} | {_cell(text)}{_bounds(option)}{variable} |"


def _default(option: click.Option) -> str:
    value = option.default
    if value in (None, "", ()) or callable(value) or "UNSET" in repr(value).upper():
        return "required" if option.required else ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`"


def _bounds(option: click.Option) -> str:
    kind = option.type
    if isinstance(kind, click.Choice):
        return " One of " + ", ".join(f"`{choice}`" for choice in kind.choices) + "."
    if isinstance(kind, click.IntRange | click.FloatRange):
        low = f"{'>' if kind.min_open else '≥'} {kind.min}" if kind.min is not None else ""
        high = f"{'<' if kind.max_open else '≤'} {kind.max}" if kind.max is not None else ""
        return f" [{', '.join(bound for bound in (low, high) if bound)}]" if low or high else ""
    return ""


def errors_page() -> str:
    """Every error class and every reason."""
    parts = [
        NOTE,
        "# Errors and their reasons\n",
        "Every failed call raises a subclass of `headwise.HeadwiseError`. Its `reason` is stable; "
        "its message is not.\n",
        "```python\nfrom headwise import HeadwiseError\n\ntry:\n    text = "
        'client.generate("Hello").text()\nexcept HeadwiseError as error:\n    '
        "print(error.code, error.reason, error.field, error.retry_after_seconds)\n```\n",
        "On the wire the reason travels as `google.rpc.ErrorInfo`, and a delay as "
        "`google.rpc.RetryInfo`.\n",
        "## Classes\n",
        "| class | gRPC status |\n|---|---|",
    ]
    rows = [f"| `{kind.__name__}` | `{code.name}` |" for code, kind in _classes()]
    parts += ["\n".join(rows) + "\n", "## Reasons\n"]
    raised = raised_reasons()
    lines = ["| reason | class | meaning | remedy |", "|---|---|---|---|"]
    for reason, (meaning, remedy) in sorted(MEANINGS.items()):
        kinds = ", ".join(f"`{kind}`" for kind in sorted(raised.get(reason, ())))
        lines.append(f"| `{reason}` | {kinds} | {meaning} | {remedy} |")
    return "\n".join([*parts, "\n".join(lines) + "\n"])


def _classes() -> list[tuple[typing.Any, type[headwise.HeadwiseError]]]:
    from headwise.errors import BY_CODE

    return sorted(BY_CODE.items(), key=lambda item: item[1].__name__)


def raised_reasons() -> dict[str, set[str]]:
    """Every reason that the code raises, and the classes of the errors that carry it."""
    from kvstore.tiers.base import MissReason, PutStatus

    found: dict[str, set[str]] = defaultdict(set)
    classes = {kind.__name__ for _, kind in _classes()} | {"HeadwiseError"}
    for folder in ("headwise", "services", "kvstore"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if "v1" not in file.parts:
                _collect(ast.parse(file.read_text(encoding="utf-8")), classes, found)
    # reasons that the code makes from a variable
    found["PREFILL_UNAVAILABLE"].add("Unavailable")
    found["UNAVAILABLE"].add("Unavailable")
    found["UNKNOWN"].add("HeadwiseError")
    found["SESSION_UNKNOWN"].add("NotFound")
    for miss in MissReason:
        found[f"CACHE_{miss.value.upper()}"].add("NotFound")
    for status in PutStatus:
        if status is not PutStatus.STORED:
            found[f"STORE_{status.value.upper()}"].add("Overloaded")
    return found


def _collect(tree: ast.AST, classes: set[str], found: dict[str, set[str]]) -> None:
    """Reasons in calls of error classes, in tuples beside one, and in calls of other functions."""
    makers = _makers(tree, classes)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            for reason in _reasons(node.args[1:]):
                kinds = {makers.get(name, name)} & classes
                kinds |= {"NotFound"} if reason.startswith(_GONE) else set()
                if kinds or reason in MEANINGS:
                    found[reason] |= kinds
        elif isinstance(node, ast.Tuple):
            for kind in {getattr(element, "id", "") for element in node.elts[:1]} & classes:
                for reason in _reasons(node.elts[1:]):
                    found[reason].add(kind)


def _makers(tree: ast.AST, classes: set[str]) -> dict[str, str]:
    """Functions of a module that return an error, and its class."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {
        f.name: f.returns.id
        for f in functions
        if isinstance(f.returns, ast.Name) and f.returns.id in classes
    }


def _reasons(nodes: list[ast.expr]) -> Iterator[str]:
    """The arguments that read as reasons: known ones, and others of two words or more."""
    for node in nodes:
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and _REASON.fullmatch(text) and (text in MEANINGS or "_" in text):
            yield text


@dataclasses.dataclass(frozen=True, slots=True)
class MetricLine:
    """One metric as it is declared."""

    name: str
    kind: str
    description: str
    labels: tuple[str, ...]

    @property
    def exposed_name(self) -> str:
        """The name in `/metrics`; counters end in `_total`."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


def metrics_page() -> str:
    """Every metric of both processes."""
    parts = [
        NOTE,
        "# Metrics\n",
        "Each process serves `/metrics` in Prometheus' text format on `--metrics-port`.\n",
        "```console\n$ curl -s http://127.0.0.1:9101/metrics | grep headwise_kv_resident_bytes\n"
        "```\n",
        "Histograms also have `_bucket`, `_sum` and `_count`. "
        "[Operations](../operations.md#metrics) says which to watch.\n",
        "| metric | kind | labels | meaning |\n|---|---|---|---|",
    ]
    rows = [
        f"| `{line.exposed_name}` | {line.kind} | "
        f"{', '.join(f'`{label}`' for label in line.labels)} | {_cell(line.description)} |"
        for line in sorted(metrics(), key=lambda line: line.name)
    ]
    return "\n".join([*parts, "\n".join(rows) + "\n"])


def metrics() -> Iterator[MetricLine]:
    """The metrics that the code declares."""
    for file in _METRICS:
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (line := _metric(node)) is not None:
                yield line


def _metric(call: ast.Call) -> MetricLine | None:
    function = getattr(call.func, "id", "")
    if function not in ("Counter", "Gauge", "Histogram", "_counter"):
        return None
    values = [ast.literal_eval(a) for a in call.args if isinstance(a, ast.Constant | ast.List)]
    if function in ("Counter", "Gauge", "Histogram"):
        labels = tuple(values[2]) if len(values) > 2 else ()
        return MetricLine(values[0], function.lower(), values[1], labels)
    if function == "_counter" and values:
        return MetricLine(f"headwise_store_{values[0]}", "counter", values[1], tuple(values[2:]))
    return None


def client_page() -> str:
    """The public classes of the client, from their docstrings."""
    from headwise.async_client import AsyncGeneration
    from headwise.caches import AsyncCacheCalls, CacheCalls
    from headwise.client import Generation
    from headwise.requests import LeaseOptions
    from headwise.sessions import AsyncSessionCalls, SessionCalls

    parts = [
        NOTE,
        "# Client API\n",
        "The package `headwise` needs gRPC and protobuf alone. `AsyncClient` has the "
        "methods of `Client` as coroutines.\n",
        '```python\nfrom headwise import Client\n\nwith Client("127.0.0.1:7080") as client:\n'
        '    print(client.generate("The capital of France is", max_tokens=8).text())\n```\n',
    ]
    errors = {vars(headwise)[n] for n in headwise.__all__ if _is_error(vars(headwise)[n])}
    calls: list[typing.Any] = [headwise.Client, Generation, CacheCalls, SessionCalls]
    calls += [headwise.AsyncClient, AsyncGeneration, AsyncCacheCalls, AsyncSessionCalls]
    public = [vars(headwise)[name] for name in headwise.__all__]
    values = [p for p in public if isinstance(p, type) and p not in errors and p not in calls]
    values.append(LeaseOptions)
    parts += ["## Calls\n", *(line for kind in calls for line in _class_section(kind))]
    parts += ["## Values\n", *(line for kind in values for line in _class_section(kind))]
    parts += ["## Errors\n", "[Errors and their reasons](errors.md) lists them.\n"]
    return "\n".join(parts)


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _class_section(kind: type) -> list[str]:
    lines = [f"### {kind.__name__}\n", f"```python\n{_declaration(kind)}\n```\n", _doc(kind)]
    for name, member in vars(kind).items():
        if name.startswith("_") or not (inspect.getdoc(member) or "").strip():
            continue
        if isinstance(member, types.FunctionType):
            signature = _signature(name, inspect.signature(member))
            prefix = "async def" if inspect.iscoroutinefunction(member) else "def"
            lines += [f"#### {kind.__name__}.{name}\n", f"```python\n{prefix} {signature}\n```\n"]
            lines.append(_doc(member))
        elif isinstance(member, property):
            lines += [f"#### {kind.__name__}.{name}\n", _doc(member)]
    return lines


def _declaration(kind: type) -> str:
    if issubclass(kind, enum.Enum):
        members = "\n".join(f"    {m.name} = {_value(m.value)}" for m in kind)
        return f"class {kind.__name__}:\n{members}"
    if typing.is_typeddict(kind):
        fields = "\n".join(f"    {n}: {_type(t)}" for n, t in kind.__annotations__.items())
        return f"class {kind.__name__}(TypedDict, total=False):\n{fields}"
    if kind.__name__.endswith(("Calls", "Generation")):
        return f"class {kind.__name__}"
    return "class " + _signature(kind.__name__, inspect.signature(kind))


def _signature(name: str, signature: inspect.Signature) -> str:
    parts, star = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        mark = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is parameter.empty else f" = {_value(parameter.default)}"
        parts.append(f"{mark}{parameter.name}: {_type(parameter.annotation)}{default}")
    result = signature.return_annotation
    arrow = "" if result in (None, "None", signature.empty) else f" -> {_type(result)}"
    line = f"{name}({', '.join(parts)}){arrow}"
    inner = "".join(f"    {part},\n" for part in parts)
    return line if len(line) <= 88 else f"{name}(\n{inner}){arrow}"


def _type(annotation: object) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    if not isinstance(annotation, str | type):
        text = str(annotation)
    return re.sub(r"ForwardRef\('([^']*)'.*?\)", r"\1", text)


def _value(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(str(value))
    return "…" if type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS" else repr(value)


def _doc(item: object) -> str:
    """The docstring, its examples as code blocks."""
    return (inspect.getdoc(item) or "") + "\n"


def _cell(text: str) -> str:
    """Text that can stand in a cell of a table."""
    return text.replace("|", "\\|")


def stale() -> list[str]:
    """Names of committed pages that differ from the code."""
    written = pages()
    return [n for n, text in written.items() if _committed(n) != text]


def _committed(name: str) -> str:
    file = FOLDER / name
    return file.read_text(encoding="utf-8") if file.exists() else ""


def main() -> None:
    """Write the pages, or with `--check` compare them."""
    if "--check" in sys.argv[1:]:
        old = stale()
        sys.exit(f"stale: {', '.join(old)}; run python -m checks.reference" if old else 0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
