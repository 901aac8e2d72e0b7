# SPDX-License-Identifier: Apache-2.0
"""A model's files before they are used: what is damaged, or would run code, is refused by name."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

# Settings of transformers, diffusers and peft that name code or models from elsewhere.
CODE_KEYS = {"auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines"}
CODE_KEYS |= {"_module", "base_model_name_or_path"}


def read_json(file: Path) -> dict:
    """Reads a JSON object.

    Raises:
        ValueError: for damaged JSON and for anything but an object; names the file.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, no JSON ({error}): copy it anew") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds {value!r:.60}; expected a JSON object")
    return value


def check_files(place: Path, *needed: str) -> None:
    """Checks the files of a model, before anything in them is used.

    Args:
        place: its folder.
        needed: names of files that must be there.

    Raises:
        FileNotFoundError: where a file is missing; names it.
        ValueError: for code, for a setting that loads code or models from elsewhere, and for a
            damaged file; names it.
    """
    for name in needed:
        if not (place / name).is_file():
            raise FileNotFoundError(f"{place / name} is missing; pass a complete model folder")
    for file in sorted(file for file in place.rglob("*") if file.is_file()):
        if file.suffix == ".py":
            raise ValueError(f"{file} is code, and nothing in a model folder is run: remove it")
        if file.suffix == ".json":
            check_settings(file)
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "np"):
                    pass
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is damaged ({error}): copy it anew") from None


def check_settings(file: Path) -> dict:
    """Reads a JSON object and refuses settings that load code or models from elsewhere.

    Raises:
        ValueError: for such a setting and for damaged JSON; names the file.
    """
    content = read_json(file)
    values = [content] if file.name not in ("vocab.json", "tokenizer.json") else []
    while values:
        value = values.pop()
        if isinstance(value, dict):
            for key in sorted(CODE_KEYS & value.keys()):
                raise ValueError(
                    f"{file}: {key} is {value[key]!r:.60}; it names code or models from elsewhere, "
                    "and only what is in the folder is read: remove it"
                )
            values += value.values()
        elif isinstance(value, list):
            values += value
    return content


@contextmanager
def named(place: Path) -> Iterator[None]:
    """Turns what a library raises about a model's files into a ValueError that names the folder."""
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(place) in str(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{place} cannot be read: {reason:.300}") from error
