# SPDX-License-Identifier: Apache-2.0
"""A model's card: card.json for programs, README.md for people, in the model's folder.

Tables that lie in the folder, as `spatext-lab ablation` writes them, stand in the card.
"""

import json
from pathlib import Path


def write_card(folder: Path, facts: dict) -> None:
    """Writes both forms of the same facts."""
    (folder / "card.json").write_text(json.dumps(facts, indent=2) + "\n")
    plan = facts["plan"]
    asked = {"seed": plan["seed"], "steps": plan["steps"], **facts["given"]}
    command = f"spatext-lab train {facts['recipe']}"
    command += "".join(f" --{k}" if v is True else f" --{k} {v}" for k, v in asked.items())
    lines = [
        f"# {facts['recipe']}",
        "",
        f"Intended use: {facts['use']}.",
        "",
        f"* Made by `{command}` in {facts['seconds'] / 60:.0f} minutes on {facts['hardware']}.",
        f"* Data: {facts['data']}.",
        f"* Mean loss of the last 100 steps: {facts['final_loss']}.",
        "* Versions: " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items()) + ".",
        "* Weights and card: CC BY 4.0.",
    ]
    lines += [f"* {name}: {value}." for name, value in facts.get("scores", {}).items()]
    for table in sorted(folder.glob("*.md")):
        if table.name != "README.md":
            lines += ["", f"## {table.stem.capitalize()}", "", table.read_text().rstrip()]
    (folder / "README.md").write_text("\n".join(lines) + "\n")
