"""Measure how readable the documents are, and fail above the limits.

`python -m checks.documents` reads README.md and every page of docs. Prose is what remains without
code blocks, tables, headings, links' addresses and HTML. A list item is a paragraph of its own.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

LONG_PARAGRAPH_WORDS = 60
MAX_LONG_PARAGRAPHS = 10
MIN_CODE_BLOCKS_PER_1000_WORDS = 10.0
MAX_SENTENCE_WORDS_P90 = 25

_LIST_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s+")
_NOT_PROSE = re.compile(r"^\s*(?:#|\||<|:::|!!!|---)")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_SENTENCE_END = re.compile(r"(?<=[.!?])[)*]*\s+")


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """The counts of one document."""

    path: pathlib.Path
    paragraphs: tuple[str, ...]
    code_blocks: int

    @property
    def words(self) -> int:
        """Words of prose."""
        return sum(len(text.split()) for text in self.paragraphs)

    @property
    def long_paragraphs(self) -> tuple[str, ...]:
        """Paragraphs of more than `LONG_PARAGRAPH_WORDS` words."""
        return tuple(p for p in self.paragraphs if len(p.split()) > LONG_PARAGRAPH_WORDS)

    @property
    def sentence_lengths(self) -> list[int]:
        """Words of each sentence."""
        sentences = (s for p in self.paragraphs for s in _SENTENCE_END.split(p))
        return [len(sentence.split()) for sentence in sentences if sentence.strip()]


def read_page(path: pathlib.Path) -> Page:
    """Split a Markdown file into paragraphs of prose and code blocks."""
    return parse(path, path.read_text(encoding="utf-8").splitlines())


def parse(path: pathlib.Path, lines: Iterable[str]) -> Page:
    """Split lines of Markdown, fenced and indented code blocks apart."""
    prose: list[str] = []
    code_blocks = 0
    for is_code, block in _blocks(lines):
        code_blocks += is_code
        prose += [] if is_code else [*block, ""]
    return Page(path, tuple(_paragraphs(prose)), code_blocks)


def _blocks(lines: Iterable[str]) -> Iterator[tuple[bool, list[str]]]:
    """Runs of lines that are code, or not."""
    block: list[str] = []
    fenced = indented = in_list = False
    for line in lines:
        blank = not line.strip()
        if line.lstrip().startswith("```"):
            if fenced or block:
                yield fenced or indented, block
            block, fenced, indented = [], not fenced, False
            continue
        starts = not (fenced or indented or in_list) and line.startswith("    ")
        if starts and not blank and (not block or not block[-1].strip()):
            yield False, block
            block, indented = [], True
        elif indented and not blank and not line.startswith("    "):
            yield True, block
            block, indented = [], False
        if not fenced and not blank:
            in_list = bool(_LIST_ITEM.match(line)) or (in_list and line.startswith(" "))
        block.append(line)
    yield fenced or indented, block


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    words: list[str] = []
    for line in [*lines, ""]:
        skipped = bool(_NOT_PROSE.match(line))
        if words and (not line.strip() or skipped or _LIST_ITEM.match(line)):
            yield " ".join(words)
            words = []
        if not skipped:
            words += _plain(line).split()


def _plain(line: str) -> str:
    """The line without list marks and link addresses."""
    return _LINK.sub(r"\1", _LIST_ITEM.sub("", line))


def percentile(lengths: Iterable[int], share: float) -> int:
    """The smallest length that at least `share` of all do not exceed; 0 of none."""
    ordered = sorted(lengths)
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)] if ordered else 0


def pages(root: pathlib.Path) -> list[Page]:
    """README.md and every page of docs below `root`."""
    paths = [root / "README.md", *sorted(root.glob("docs/**/*.md"))]
    return [read_page(path) for path in paths]


def faults(read: list[Page]) -> list[str]:
    """One line for each limit that the pages together miss."""
    words = sum(page.words for page in read)
    blocks = 1000 * sum(page.code_blocks for page in read) / max(words, 1)
    sentence = percentile((n for page in read for n in page.sentence_lengths), 0.9)
    long = [(page.path, p) for page in read for p in page.long_paragraphs]
    lines = []
    if len(long) > MAX_LONG_PARAGRAPHS:
        lines.append(f"{len(long)} paragraphs over {LONG_PARAGRAPH_WORDS} words")
        lines += [f"  {path}: {text[:60]}…" for path, text in long]
    if blocks < MIN_CODE_BLOCKS_PER_1000_WORDS:
        lines.append(f"{blocks:.1f} code blocks per 1,000 words")
    if sentence > MAX_SENTENCE_WORDS_P90:
        lines.append(f"90th percentile of sentence length is {sentence} words")
    return lines


def _row(name: str, read: list[Page]) -> str:
    words = sum(page.words for page in read)
    blocks = sum(page.code_blocks for page in read)
    long = sum(len(page.long_paragraphs) for page in read)
    sentence = percentile((n for page in read for n in page.sentence_lengths), 0.9)
    per_thousand = 1000 * blocks / max(words, 1)
    return f"{name:44} {words:6} {long:6} {blocks:6} {per_thousand:8.1f} {sentence:8}"


def main() -> None:
    """Print one row for each page and one for all; exit with 1 above a limit."""
    root = pathlib.Path(__file__).parent.parent
    read = pages(root)
    print(f"{'page':44} {'words':>6} {'long':>6} {'code':>6} {'per 1000':>8} {'p90':>8}")
    for page in read:
        print(_row(str(page.path.relative_to(root)), [page]))
    print(_row("all", read))
    found = faults(read)
    print("\n".join(found))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
