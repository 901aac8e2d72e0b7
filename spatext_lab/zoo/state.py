# SPDX-License-Identifier: Apache-2.0
"""What is there of the models that can be fetched, told from names and sizes alone.

Reading 4 GB for their checksums takes seconds; `zoo.folder` does it before they are used.
"""

from pathlib import Path

from spatext_lab import zoo
from spatext_lab.zoo.known import MODELS

CARD = "card.json"


def state(name: str) -> str:
    """One phrase on a known model: where it is, at which commits, or what of it is missing.

    Args:
        name: a model in MODELS, looked for where `zoo.folder` does.

    Raises:
        ValueError: a part of it is damaged; names the first file.
    """
    place = next((place for place in zoo.places(name) if place.is_dir()), None)
    if place is None:
        return f"not there, and not needed ({MODELS[name].size / 1e9:.1f} GB)"
    found = []
    for source in MODELS[name].sources:
        part = place / source.part
        if not part.is_dir():
            found.append(f"{part} is missing")
        elif (part / CARD).is_file():
            if problem := _problem(part):
                raise ValueError(problem)
            found.append(f"{part} at commit {zoo.read_json(part / CARD)['commit'][:12]}")
        elif lacking := [name for name in source.needed if not (part / name).is_file()]:
            found.append(f"{part} has no {lacking[0]}")
        else:
            found.append(f"{part}, not from models fetch")
    return "; ".join(found)


def whole(place: Path) -> bool:
    """Whether a folder that `fetch` wrote has all its files, in the right size."""
    return (place / CARD).is_file() and _problem(place) is None


def _problem(place: Path) -> str | None:
    """The first file that is not as the card says."""
    for name, facts in zoo.read_json(place / CARD)["files"].items():
        if not (place / name).is_file():
            return f"{place / name} is missing"
        if (size := (place / name).stat().st_size) != facts["size"]:
            return f"{place / name} is damaged: {size} bytes, not {facts['size']}"
    return None
