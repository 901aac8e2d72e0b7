# SPDX-License-Identifier: Apache-2.0
"""The tour's folder: one HTML page without scripts, its images beside it, its numbers as JSON.

A tour is written in a folder of its own and put in place when it is complete, so that whoever
looks finds the last whole tour or none.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from spatext_lab.figures.png import enlarged, save, to_image
from spatext_lab.tour import markup

FACTS, INDEX, IMAGES = "tour.json", "index.html", "images"
FORMAT = "spatext-tour"


@dataclass
class Page:
    """What is written so far: images in `folder`, sections and facts in memory."""

    folder: Path
    facts: dict[str, Any] = field(default_factory=lambda: {"format": FORMAT})
    sections: list[tuple[str, float, list[Markup]]] = field(default_factory=list)

    def image(self, name: str, image: Any, alt: str, size: int = 256, **made: Any) -> Markup:
        """Save an image as images/NAME.png and return the <img> element that shows it.

        Args:
            name:  of the file.
            image: what `figures.to_image` takes; one below `size` pixels is enlarged.
            alt:   the alt text.
            size:  of the longer side, in pixels, at least.
            made:  how it was made (seed, scales ...), written into the PNG.
        """
        shown = to_image(image)
        shown = enlarged(shown, size) if max(shown.size) < size else shown
        (self.folder / IMAGES).mkdir(exist_ok=True)
        save(shown, self.folder / IMAGES / f"{name}.png", alt, made)
        return markup.image(f"{IMAGES}/{name}.png", shown.size, alt)

    def add(self, title: str, seconds: float, blocks: list[Markup]) -> None:
        """One section more; `seconds` is how long it took."""
        self.sections.append((title, seconds, blocks))
        self.facts.setdefault("seconds", {})[title] = round(seconds, 1)

    def write(self, title: str, lead: str, figures: list[tuple[str, str]], foot: list[str]) -> None:
        """index.html and tour.json; `figures` are the (number, what) of the top."""
        page = {"title": title, "lead": lead, "facts": figures, "foot": foot}
        style = files("spatext_lab.tour").joinpath("page.css").read_text(encoding="utf-8")
        template = markup.TEMPLATES.get_template("page.html")
        html = template.render(page, style=style, sections=self.sections)
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
