"""One kernel's machine code: what a program of it takes, and what its loops ask for."""

from __future__ import annotations

import collections
import dataclasses
import inspect
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import triton
from triton.runtime.jit import JITFunction

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_LABEL = re.compile(r"(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(.*?);")
_PLACE = re.compile(r'//## File "(.*)", line (\d+)')
_BRANCH = re.compile(r"BRA.*`\((\.L_x_\d+)\)")
_SPILL = re.compile(r"(?:@!?U?P\d )?(?:LDL|STL)\b")
# after these comes the next instruction only if a guard or an operand says so
_LEAVES = re.compile(r"(BRA(?!\.DIV)|EXIT|RET)\S*(?! !?U?P\d)")


def spills(instructions: Iterable[str]) -> int:
    """Return how many instructions read or write a spilled register."""
    return sum(bool(_SPILL.match(line)) for line in instructions)


@dataclasses.dataclass(frozen=True, slots=True)
class Loop:
    """Instructions that a loop has, and those on the shortest way round it.

    The shortest way skips what only some rounds do.
    """

    all: tuple[str, ...]
    shortest: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    """`registers` of a thread, `shared_bytes` of a program of `warps`.

    `places`: the file and line that each instruction comes from.
    What is compiled already may come from another copy of the sources: files have only names.
    """

    name: str
    warps: int
    shared_bytes: int
    registers: int
    instructions: tuple[str, ...]
    places: tuple[tuple[str, int], ...]
    labels: dict[str, int]

    @classmethod
    def of(cls, name: str, kernel: Any) -> Listing:
        """Read the listing of a kernel that Triton has compiled."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            usage = _told("cuobjdump", "--dump-resource-usage", file.name)
            text = _told("nvdisasm", "--print-code", "--print-line-info", file.name)
        instructions, places, labels = [], [], {}
        here = ("", 0)
        for line in text.splitlines():
            if place := _PLACE.search(line):
                here = Path(place[1]).name, int(place[2])
            elif label := _LABEL.match(line):
                labels[label[1]] = len(instructions)
            elif instruction := _INSTRUCTION.match(line):
                instructions.append(instruction[1])
                places.append(here)
        return cls(
            name,
            kernel.metadata.num_warps,
            kernel.metadata.shared,
            _number("REG", usage),
            tuple(instructions),
            tuple(places),
            labels,
        )

    def loops(self, function: JITFunction[Any], statement: str) -> list[Loop]:
        """Return the loops that this statement of the function opens, in their order."""
        lines, first = inspect.getsourcelines(function.fn)
        file = Path(inspect.getfile(function.fn)).name
        wanted = {
            (file, first + number)
            for number, line in enumerate(lines)
            if line.strip().startswith(statement)
        }
        found = []
        for last, place in enumerate(self.places):
            begin = self._target(last)
            if place in wanted and begin is not None and begin <= last:
                every = self.instructions[begin : last + 1]
                found.append(Loop(every, self._way(begin, last)))
        return found

    def shortest(self) -> tuple[str, ...]:
        """Instructions on the shortest way through a program that does something."""
        last = max(at for at, line in enumerate(self.instructions) if line.startswith("EXIT"))
        return self._way(0, last)

    def _target(self, at: int) -> int | None:
        branch = _BRANCH.search(self.instructions[at])
        return None if branch is None else self.labels[branch[1]]

    def _way(self, begin: int, last: int) -> tuple[str, ...]:
        """Return the shortest way between two instructions, both included."""
        came_from, waiting = {begin: begin}, collections.deque([begin])
        while last not in came_from:
            at = waiting.popleft()
            target = self._target(at)
            following = [] if target is None else [target]
            if not _LEAVES.match(self.instructions[at]):
                following.append(at + 1)
            for place in following:
                if place not in came_from:
                    came_from[place] = at
                    waiting.append(place)
        way = [last]
        while way[-1] != begin:
            way.append(came_from[way[-1]])
        return tuple(self.instructions[at] for at in reversed(way))


def _told(tool: str, *arguments: str) -> str:
    asked = [str(_TOOLS / tool), *arguments]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


def _number(name: str, usage: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", usage)
    assert found, usage
    return int(found[1])
