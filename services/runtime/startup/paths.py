"""Checks of folders and files that a process writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from services.runtime.startup.problem import Problem


def folder_problems(option: str, folder: Path) -> Iterator[Problem]:
    """Problems of a folder that is created and written, such as `--store-disk`."""
    path = Path(os.path.expanduser(folder))
    try:
        existing = next(part for part in (path, *path.parents) if part.exists())
        if not existing.is_dir():
            found = f"{option} {folder}: {existing} is a file"
            yield Problem(option[2:], found, "Give a folder.")
            return
        # permissions alone do not tell: a volume may be mounted read-only
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        found = f"{option} {folder} cannot be written: {error.strerror or error}"
        yield Problem(option[2:], found, "Give a folder that can be written.")
    except ValueError as error:
        yield Problem(option[2:], f"{option}: {error}", "Give a folder that can be written.")


def readable_folder_problems(option: str, folder: Path) -> Iterator[Problem]:
    """Problems of a folder that may be read-only where nothing has to be written."""
    path = Path(os.path.expanduser(folder))
    if str(path).startswith("~"):
        found = f"{option} {folder}: this user has no home folder"
        yield Problem(option[2:], found, "Give a folder by its whole path.")
    elif path.exists() and not path.is_dir():
        found = f"{option} {folder}: it is a file"
        yield Problem(option[2:], found, "Give a folder.")


def ready_file_problems(file: str) -> Iterator[Problem]:
    """Problems of `--ready-file`; empty stands for none."""
    if not file:
        return
    path = Path(file)
    if path.is_dir():
        found = f"--ready-file {file}: it is a folder"
        yield Problem("ready-file", found, "Give the name of a file.")
    elif not path.parent.is_dir():
        found = f"--ready-file {file}: there is no folder {path.parent}"
        yield Problem("ready-file", found, "Create the folder, or give another file.")
    else:
        for problem in folder_problems("--ready-file", path.parent):
            yield Problem("ready-file", problem.found, "Give a file that can be written.")
