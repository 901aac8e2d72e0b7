# SPDX-License-Identifier: Apache-2.0
"""The tour's folder: one HTML page without scripts, its pictures beside it, its numbers as JSON.

A tour is written in a folder of its own and put in place when it is complete, so that whoever
looks finds the last whole tour or none.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from spatext_lab.figures.png import enlarged, save, to_image
from spatext_lab.tour.markup import Html, cards, inline, prose

FACTS, INDEX, PICTURES = "tour.json", "index.html", "pictures"
FORMAT = "spatext-tour"


@dataclass
class Page:
    """What is written so far: pictures in `folder`, sections and facts in memory."""

    folder: Path
    facts: dict[str, Any] = field(default_factory=lambda: {"format": FORMAT})
    sections: list[tuple[str, float, list[Html]]] = field(default_factory=list)

    def image(self, name: str, picture: Any, alt: str, size: int = 256, **made: Any) -> Html:
        """Saves a picture as pictures/NAME.png and returns the <img> that shows it.

        picture: what `figures.to_image` takes; smaller than `size` pixels it is enlarged.
        made: how it was made (seed, scales ...), written into the PNG.
        """
        shown = to_image(picture)
        shown = enlarged(shown, size) if max(shown.size) < size else shown
        (self.folder / PICTURES).mkdir(exist_ok=True)
        save(shown, self.folder / PICTURES / f"{name}.png", alt, made)
        width, height = shown.size
        return Html(
            f'<img src="{PICTURES}/{escape(name)}.png" width="{width}" height="{height}" '
            f'loading="lazy" alt="{escape(alt)}">'
        )

    def add(self, title: str, seconds: float, blocks: list[Html]) -> None:
        """One section more; `seconds` is how long it took."""
        self.sections.append((title, seconds, blocks))
        self.facts.setdefault("seconds", {})[title] = round(seconds, 1)

    def write(self, title: str, lead: str, figures: list[tuple[str, str]], foot: list[str]) -> None:
        """index.html and tour.json; `figures` are the (number, what) of the top."""
        style = files("spatext_lab.tour").joinpath("page.css").read_text(encoding="utf-8")
        links = "".join(
            f'<li><a href="#s{k}">{inline(name)}</a></li>'
            for k, (name, _, _) in enumerate(self.sections, start=1)
        )
        body = "\n".join(
            f'<section id="s{k}">\n<h2>{inline(name)} <small>{seconds:.0f} s</small></h2>\n'
            f"{''.join(blocks)}</section>"
            for k, (name, seconds, blocks) in enumerate(self.sections, start=1)
        )
        html = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="spatext-lab tour">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{inline(title)}</h1>{prose(lead)}</header>
{cards(figures)}<nav aria-label="Contents"><ol>{links}</ol></nav>
<main>
{body}
</main>
<footer>{prose(*foot)}</footer>
</body>
</html>
"""
        (self.folder / INDEX).write_text(html, encoding="utf-8", newline="\n")
        text = json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n"
        (self.folder / FACTS).write_text(text, encoding="utf-8", newline="\n")


def start(out: Path) -> Path:
    """An empty folder OUT.partial to write the tour in.

    Raises ValueError where OUT is there and is not a tour: nothing of yours is overwritten.
    """
    partial = out.with_name(out.name + ".partial")
    for folder in (out, partial, out.with_name(out.name + ".earlier")):
        _refuse_foreign(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _mark(partial)
    return partial


def _mark(partial: Path) -> None:
    """So that the rest of a tour that was stopped is known as one, and may be cleared away."""
    (partial / FACTS).write_text(json.dumps({"format": FORMAT}) + "\n", encoding="utf-8")


def finish(partial: Path, out: Path) -> Path:
    """Puts the complete tour in place of an earlier one; returns the page's path."""
    _refuse_foreign(out)
    earlier = out.with_name(out.name + ".earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if out.exists():
        out.rename(earlier)
    partial.rename(out)
    shutil.rmtree(earlier, ignore_errors=True)
    return out / INDEX


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        known = isinstance(facts, dict) and facts.get("format") == FORMAT
    except (OSError, ValueError):
        known = False
    if not known:
        raise ValueError(
            f"out is {folder}, which is there and is not a tour: name a new folder, or move it away"
        )
