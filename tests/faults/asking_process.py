"""A client as a process of its own, to be killed and frozen: python asking_process.py TARGET ...

Arguments after the target: prompt tokens, most tokens to make. Prints the number of tokens made
so far with every delta.
"""

from __future__ import annotations

import sys

from headwise import Client


def main(target: str, prompt_tokens: int, max_tokens: int) -> None:
    made = 0
    prompt = [2 + i % 500 for i in range(prompt_tokens)]
    with Client(target, retries=False) as client:
        for delta in client.generate(prompt, policy="full", max_tokens=max_tokens, ignore_eos=True):
            made += len(delta.token_ids)
            sys.stdout.write(f"{made}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
