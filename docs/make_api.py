# SPDX-License-Identifier: Apache-2.0
"""Writes docs/api.md and docs/tree.md from the docstrings: `make api`.

The source is parsed and not imported, so annotations stand as they were written.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "spatext_lab"
# In reading order: what a scene is, the equations, the two methods, and what stands around them.
FOLDERS = (
    *("scene", "diffusion", "images", "clip", "zoo", "text_to_image", "spatext", "reco"),
    *("baselines", "datasets", "figures", "training", "evaluation", "widgets", "course"),
)
INTRO = """# API

Every public name with its signature, by folder. A tensor's shape stands in its annotation:
`Float[Tensor, "b c h w"]` is a float tensor with four axes. Written by `make api` from the
docstrings; a test compares. Files: [tree](tree.md). Terms: [glossary](glossary.md). Equations:
[where they are in the code](equations.md).
"""
TREE_INTRO = """# The tree

Each file with the first sentence of its docstring; written by `make api`. The folders' imports
form a directed graph without cycles, which `make house` prints.
"""
AROUND = {
    "notebooks/": "the course, one notebook a chapter, executed",
    "data/pocket/": "the shipped models, each with a card, and SHA256SUMS",
    "data/pocket-coco/": "320 rendered scenes in COCO layout",
    "data/scenes/": "scenes to edit",
    "docs/": "glossary, equations, API, tables, and the log of what was tried",
    "tests/": "mirrors spatext_lab/",
    "benchmarks/": "speed and memory beside other libraries",
}
BLOCKS = ("Args:", "Returns:", "Yields:", "Raises:", "Attributes:")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    """Writes both pages."""
    for name, text in pages().items():
        (ROOT / "docs" / name).write_text(text, encoding="utf-8", newline="\n")


def pages() -> dict[str, str]:
    """The text of each generated page, by file name."""
    return {"api.md": api(), "tree.md": tree()}


# --- docs/tree.md ---------------------------------------------------------------------------------


def tree() -> str:
    """The files of the package with what each is for, and the folders around it."""
    lines = [f"{'spatext_lab/':30} {summary(PACKAGE / '__init__.py')}"]
    for path in sorted(PACKAGE.rglob("*.py"), key=_folders_last):
        *above, name = path.relative_to(PACKAGE).parts
        if name != "__init__.py":
            lines.append(f"{'  ' * (len(above) + 1) + name:30} {summary(path)}")
        elif above:
            lines.append(f"{'  ' * len(above) + above[-1] + '/':30} {summary(path)}")
            if any(path.parent.glob("*.css")):
                lines.append(f"{'  ' * (len(above) + 1) + '*.css, *.js':30} styles and scripts")
    lines += [f"{name:30} {what}" for name, what in AROUND.items() if (ROOT / name).is_dir()]
    return "\n".join([TREE_INTRO, "```", *lines, "```", ""])


def _folders_last(path: Path) -> tuple:
    """Sorts a folder's face first, then its files, then the folders in it."""
    *above, name = path.relative_to(PACKAGE).parts
    return (*((1, folder) for folder in above), (0, "" if name == "__init__.py" else name))


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, where it may have been wrapped."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


# --- docs/api.md ----------------------------------------------------------------------------------


def api() -> str:
    """The whole page: a table of contents, then every module."""
    contents, body = [], []
    for folder in FOLDERS:
        parts = [part for part in (module(path) for path in sources(folder)) if part]
        contents.append(f"* {folder}: " + ", ".join(f"[{n}](#{slug(n)})" for n, _ in parts))
        body += [text for _, text in parts]
    return "\n".join([INTRO, *contents, "", *body])


def sources(folder: str) -> list[Path]:
    """The files of one folder at the top of the package; its face stands first."""
    if (PACKAGE / f"{folder}.py").is_file():
        return [PACKAGE / f"{folder}.py"]
    return sorted((PACKAGE / folder).rglob("*.py"), key=_folders_last)


def slug(name: str) -> str:
    """The anchor that a heading gets on GitHub."""
    return name.replace(".", "").lower()


def module(path: Path) -> tuple[str, str] | None:
    """(dotted name, text) of a module; None for one that has nothing public."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    name = ".".join(part for part in parts if part != "__init__")
    code = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [text for node in code.body if public(node) for text in entry(node)]
    names = exported(code) if parts[-1] == "__init__" else []
    if not blocks and not names:
        return None
    face = [f"`from spatext_lab.{name} import {', '.join(names)}`", ""] if names else []
    return name, "\n".join([f"## {name}", "", rendered(code), "", *face, *blocks])


def exported(code: ast.Module) -> list[str]:
    """The names that a package's face hands on: it holds its docstring and imports, no more."""
    handed = [node for node in code.body[1:] if isinstance(node, ast.ImportFrom)]
    if len(handed) < len(code.body) - 1:
        return []
    return sorted(alias.name for node in handed for alias in node.names)


def public(node: ast.AST) -> bool:
    """A class or a function without an underscore, or the call of an object."""
    known = isinstance(node, Function | ast.ClassDef)
    return known and (node.name == "__call__" or not node.name.startswith("_"))


def entry(node: Function | ast.ClassDef, owner: str = "") -> Iterator[str]:
    """Heading, signature and text of a function or class, then those of its public methods."""
    called = re.sub(r"'([^'\"]*)'", r'"\1"', signature(node))  # ast has single quotes
    yield f"### `{owner}{node.name}`\n\n```python\n{called}\n```\n\n{rendered(node)}\n"
    if isinstance(node, ast.ClassDef):
        for method in filter(public, node.body):
            if "setter" not in "".join(map(ast.unparse, method.decorator_list)):
                yield from entry(method, f"{node.name}.")


def signature(node: Function | ast.ClassDef) -> str:
    """How a function is called, or an object made, as it is written in the source."""
    decorators = [ast.unparse(each) for each in node.decorator_list]
    if isinstance(node, ast.ClassDef):
        return call(f"class {node.name}", construction(node, decorators), "")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if "property" in decorators or "cached_property" in decorators:
        return f"{node.name}{returns.replace(' ->', ':')}"
    kind = "".join(f"@{each}\n" for each in decorators if each in ("classmethod", "staticmethod"))
    return call(f"{kind}def {node.name}", parameters(node), returns)


def construction(node: ast.ClassDef, decorators: list[str]) -> list[str]:
    """What a class is made from: its `__init__`, or the fields of a dataclass or named tuple."""
    for method in node.body:
        if isinstance(method, Function) and method.name == "__init__":
            return parameters(method)
    if any("dataclass" in each for each in decorators) or "NamedTuple" in map(
        ast.unparse, node.bases
    ):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        return [ast.unparse(each) for each in fields if "ClassVar" not in ast.unparse(each)]
    return []


def parameters(node: Function) -> list[str]:
    """Each parameter as it is written, without self."""
    # ast.unparse of the whole puts commas in annotations and between parameters alike
    given, found = node.args, []
    plain = given.posonlyargs + given.args
    defaults = [None] * (len(plain) - len(given.defaults)) + given.defaults
    found += [written(one, default) for one, default in zip(plain, defaults, strict=True)]
    if given.vararg:
        found.append(f"*{written(given.vararg)}")
    elif given.kwonlyargs:
        found.append("*")
    found += [written(*pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    found += [f"**{written(given.kwarg)}"] if given.kwarg else []
    return found[1:] if found and found[0] in ("self", "cls") else found


def written(one: ast.arg, default: ast.expr | None = None) -> str:
    """`name: type = default`."""
    kind = f": {ast.unparse(one.annotation)}" if one.annotation else ""
    equals = " = " if one.annotation else "="
    return one.arg + kind + (f"{equals}{ast.unparse(default)}" if default else "")


def call(name: str, inside: list[str], returns: str) -> str:
    """On one line where that is short enough, else a line for each parameter."""
    line = f"{name}({', '.join(inside)}){returns}"
    if len(line.splitlines()[-1]) <= 88 or not inside:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in inside) + f"){returns}"


# --- docstrings to Markdown -----------------------------------------------------------------------


def rendered(node: ast.AST) -> str:
    """A docstring as Markdown: `Args:` and its like become lists, an example becomes code."""
    text = ast.get_docstring(node) or ""
    text, _, example = text.partition("\nExample:\n")
    out, block = [], ""
    for line in text.splitlines():
        deep = len(line) - len(line.lstrip())
        if line in BLOCKS:
            block = line
            out += ["", f"**{line[:-1]}**", ""]
        elif block and deep == 4:
            out.append("* " + re.sub(r"^([\w*, ]+):\s+", r"`\1`: ", plain(line.strip())))
        elif block and deep > 4:
            out.append("  " + plain(line.strip()))
        else:
            block = block if not line else ""
            out.append(line if deep >= 4 else plain(line))
    out += ["", "```python", dedent(example).strip(), "```"] if example else []
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def plain(line: str) -> str:
    """A line in which `<` is no HTML; code between backticks stays as it is."""
    pieces = line.split("`")
    return "`".join(p if k % 2 else p.replace("<", "\\<") for k, p in enumerate(pieces))


if __name__ == "__main__":
    main()
