# SPDX-License-Identifier: Apache-2.0
"""The licences that a trained model inherits from what it was trained from."""

from pathlib import Path
from typing import Any

from spatext_lab import zoo
from spatext_lab.zoo.state import CARD

PARTS = ("text-to-image", "spatext/clip", "spatext/prior")  # of a base, which recipes start from


def inherited(options: dict[str, Any]) -> list[dict[str, str]]:
    """The licences of the models that a training's options name, each once.

    Returns:
        For each its "name" and "address", as on the cards that `models fetch` writes and on those
        of models that were trained from such.
    """
    folders = [value for value in options.values() if isinstance(value, Path)]
    if base := options.get("base"):
        folders += [zoo.folder(base), *_parts(base)]
    cards = [zoo.read_json(place / CARD) for place in folders if (place / CARD).is_file()]
    found = [each for card in cards for each in _on(card)]
    return [each for k, each in enumerate(found) if each not in found[:k]]


def _on(card: dict) -> list[dict[str, str]]:
    every = [card["licence"]] if "licence" in card else card.get("licences", [])
    return [{"name": each["name"], "address": each["address"]} for each in every]


def _parts(base: str) -> list[Path]:
    """The folders of a base's parts, those that it has."""
    found = []
    for part in PARTS:
        try:
            found.append(zoo.folder(base, part))
        except FileNotFoundError:
            continue
    return found
