# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of README, the ablation page and the models' cards: `make tables`.

Every number is in docs/measured/*.json, beside the command that measured it: `spatext-lab
ablation --out docs/measured` writes such files itself. A page has a table between the lines
`<!-- table: NAME -->` and `<!-- end -->`; a test compares.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from spatext_lab import zoo
from spatext_lab.evaluation import reco_tables, spatext_tables, summaries_tables
from spatext_lab.evaluation.comparison import listing
from spatext_lab.evaluation.tables import cell

ROOT = Path(__file__).resolve().parents[1]
MEASURED, MODELS = ROOT / "docs" / "measured", ROOT / "data" / "pocket"
PLACE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """A table of some measured rows.

    Args:
        files: names of files in docs/measured; rows of equal names are one.
        columns: heading -> key of the value, or several, which stand without their intervals.
        rows: heading -> name of the row, left out where it is not measured; all rows by their
            names where it is empty.
        part: of the files, that has the rows.
        digits: after the point.
    """

    files: tuple[str, ...]
    columns: Mapping[str, str | tuple[str, ...]]
    rows: Mapping[str, str] | None = None
    part: str = "rows"
    digits: int = 3


TABLES = {
    "ablation": Table(("ablation",), spatext_tables.COLUMNS),
    "masks": Table(("masks",), spatext_tables.COLUMNS),
    "summaries": Table(("summaries",), summaries_tables.COLUMNS),
    "layouts": Table(("layouts",), reco_tables.LAYOUT_COLUMNS),
    "skills": Table(("skills",), reco_tables.SKILL_COLUMNS),
    "bins": Table(("bins",), reco_tables.BIN_COLUMNS),
    "init": Table(("init",), reco_tables.INIT_COLUMNS),
    "compare": Table(("compare",), listing.COLUMNS),
    "memory": Table(
        ("memory",),
        {
            "AdamW in 32 bits, average on the GPU": "all",
            "average on the CPU": "cpu",
            "and AdamW in 8 bits": "bits",
            "of it passes": "passes",
        },
        digits=1,
    ),
    "differences": Table(("compare",), listing.PAIRED, part="differences"),
    "classroom": Table(
        ("classroom",),
        {
            "memory at most, GB": "peak_gb",
            "of its own, GB": "own_gb",
            "processor, s": "cpu_seconds",
            "open files": "files",
            "threads": "threads",
            "written, GB": "written_gb",
        },
    ),
    "classroom-sampling": Table(
        ("classroom",),
        {"an image in each, s": "seconds", "processor for each, s": "cpu_seconds_each"},
        part="sampling",
    ),
    "readme-spatext": Table(
        ("segments",),
        {
            "local IoU": "local_iou",
            "region accuracy": "region_accuracy",
            "seen combinations": "region_accuracy_seen",
            "held-out combinations": "region_accuracy_heldout",
        },
        {
            "true images (the judge's own error)": "true images (the judge's own error)",
            "autoencoder (encoded and decoded)": "autoencoder (encoded and decoded)",
            "**SpaText**": "SpaText",
            "SpaText, pixel variant": "SpaText, pixel variant",
            "text-to-image, caption alone": "text-to-image, caption alone",
        },
    ),
    "readme-reco": Table(
        ("layouts", "skills"),
        {
            "AP50": "ap50",
            "AP50 of locations": "ap50_place",
            "region accuracy, seen / held out": ("region_accuracy_seen", "region_accuracy_heldout"),
            "object / count / colour / spatial (`--skills`)": tuple(reco_tables.SKILL_COLUMNS),
        },
        {
            "true images": "true images",
            "autoencoder (encoded and decoded)": "true images, decoded",
            "**ReCo**": "ReCo, as shipped",
            "the same network, caption alone": "ReCo, caption alone",
            "text-to-image, caption alone": "text-to-image",
            "coordinates as digits": "coordinates as digits",
            "positional words": "positional words",
        },
    ),
}


def main() -> None:
    """Writes all tables anew, and seals the models' folder again where a card has changed."""
    changed = {path: text for path, text in pages().items() if path.read_text("utf-8") != text}
    cards = [path for path in changed if path.is_relative_to(MODELS)]
    # sealing would hide that a weight is damaged
    if cards and (problems := [each for each in zoo.verify(MODELS) if "README.md" not in each]):
        raise SystemExit("\n".join(problems))
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))
    if cards:
        zoo.seal(MODELS)


def pages() -> dict[Path, str]:
    """Every page that has a table, with its tables as they should be."""
    paths = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *MODELS.rglob("README.md"))
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    return {path: filled(text) for path, text in texts.items() if PLACE.search(text)}


def filled(text: str) -> str:
    """A page with its tables as they should be."""
    return PLACE.sub(lambda found: f"{found[1]}{markdown(TABLES[found[2]])}{found[4]}", text)


def markdown(table: Table) -> str:
    """A table as Markdown."""
    known = measured(table.files, table.part)
    lines = ["| | " + " | ".join(table.columns) + " |", "|---" * (len(table.columns) + 1) + "|"]
    for heading, name in (table.rows or {name: name for name in known}).items():
        if name in known:
            cells = (_cell(known[name], key, table.digits) for key in table.columns.values())
            lines.append(f"| {heading} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict, key: str | tuple[str, ...], digits: int) -> str:
    if isinstance(key, str):
        return cell(row, key, digits)
    found = [cell(row, each, digits).partition(" ")[0] for each in key]
    return "-" if set(found) == {"-"} else " / ".join(found)


def measured(names: tuple[str, ...], part: str = "rows") -> dict[str, dict]:
    """The rows of some files by name."""
    rows: dict[str, dict] = {}
    for name in names:
        content = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))
        for row in content[part]:
            rows.setdefault(row["name"], {}).update(row)
    return rows


def files() -> Iterator[Path]:
    """Every file of measured rows."""
    yield from sorted(MEASURED.glob("*.json"))


if __name__ == "__main__":
    main()
