# SPDX-License-Identifier: Apache-2.0
"""A comparison in Markdown: the table, the differences, the curves, what was left out."""

from typing import Any

from spatext_lab.evaluation.methods import METHODS
from spatext_lab.evaluation.tables import markdown

# heading -> key of a row
COLUMNS = {
    "local IoU": "local_iou",
    "AP50": "ap50",
    "seen": "region_accuracy_seen",
    "held out": "region_accuracy_heldout",
    "global distance": "global_distance",
    "local distance": "local_distance",
    "Fréchet": "frechet_distance",
    "diversity": "diversity",
    "in regions": "diversity_in_regions",
    "passes": "passes",
    "seconds": "seconds_per_image",
    "memory, MB": "peak_memory_mb",
}
PAIRED = {
    heading: key
    for heading, key in COLUMNS.items()
    if key.startswith(("local", "ap50", "global", "region", "diversity"))
}


def text(report: dict[str, Any]) -> str:
    """A report as Markdown.

    Args:
        report: what `run` returns.
    """
    rows, apart = report["rows"], report["differences"]
    parts = [
        f"# Comparison on {report['scenes']} scenes",
        f"`{report['command']}`",
        markdown(rows, [row["name"] for row in rows], COLUMNS),
    ]
    if apart:
        parts += [f"## Difference from {rows[0]['name']}"]
        parts += [markdown(apart, [row["name"] for row in apart], PAIRED)]
    for heading, table in curve_tables(report).items():
        parts += [f"## Region accuracy: {heading}", markdown(*table)]
    parts += ["\n".join(f"* {line}" for line in left_out(report))]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def curve_tables(report: dict[str, Any]) -> dict[str, tuple[list[dict], list[str], dict]]:
    """For each curve the rows, their names and the columns of `tables.markdown`."""
    found: dict[str, tuple[list[dict], list[str], dict]] = {}
    for point in report["curves"]:
        rows, names, columns = found.setdefault(point["curve"], ([], [], {}))
        row = {}
        for method, one in point["methods"].items():
            columns[METHODS[method].what if method in METHODS else method] = method
            row |= {method: one["region_accuracy"], f"{method}_95": one.get("region_accuracy_95")}
        rows.append(row)
        names.append(point["label"])
    return found


def left_out(report: dict[str, Any]) -> list[str]:
    """A sentence for each method and each number of scenes that was left out, and for warnings.

    A method that drops regions or truncates a text warns, and its images count as any others.
    """
    lines = [f"{method} is left out: {why}" for method, why in report["left_out"].items()]
    for row in report["rows"]:
        unread = {"the table": row["unread"]} | {
            f"{point['curve']}, {point['label']}": point["methods"][row["method"]]["unread"]
            for point in report["curves"]
        }
        lines += [
            f"{row['name']}: {count} scenes of {where} are left out ({row['why']})"
            for where, count in unread.items()
            if count
        ]
        if row["warned"]:
            lines += [f"{row['name']}: {row['warned']} batches have warnings ({row['warning']})"]
    return lines
