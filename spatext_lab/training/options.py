# SPDX-License-Identifier: Apache-2.0
"""The options of a function, read from its source file.

An option is written once, as a parameter with its line under `Args:`; the command line is made
from there. Nothing is imported for it (torch takes seconds), so that `--help` answers at once.
"""

from __future__ import annotations

import ast
import inspect
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]  # the folder that has spatext_lab in it


@dataclass(frozen=True)
class Option:
    """A parameter of a function."""

    name: str
    kind: str  # "int", "float", "str", "Path" or "bool"
    number: int | str | None  # None for one value, "+" for several, 2 for a pair
    choices: tuple[str, ...]  # all that can be chosen; empty where that is not a list
    required: bool
    default: Any
    help: str


@cache
def options(module: str, function: str) -> dict[str, Option]:
    """The parameters of a module's function by name.

    Args:
        module: the dotted name of a module of this project.
        function: a function in it, a method as "Class.method", or a TypedDict, whose fields are
            the parameters of functions that take it as `**name: Unpack[...]`.
    """
    module, node = _found(module, function)
    words = _explained(ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        fields = (n for n in node.body if isinstance(n, ast.AnnAssign))
        pairs: Any = [(ast.arg(n.target.id, n.annotation), ast.Constant(None)) for n in fields]
        return {a.arg: _option(module, a, default, words.get(a.arg, "")) for a, default in pairs}
    usual: list = [None] * (len(node.args.args) - len(node.args.defaults)) + node.args.defaults
    pairs = zip(node.args.args + node.args.kwonlyargs, usual + node.args.kw_defaults, strict=True)
    found = {a.arg: _option(module, a, default, words.get(a.arg, "")) for a, default in pairs}
    more = node.args.kwarg and node.args.kwarg.annotation
    if isinstance(more, ast.Subscript) and ast.unparse(more.value) == "Unpack":
        found |= options(module, ast.unparse(more.slice))
    return found


def names(module: str, variable: str) -> tuple[str, ...]:
    """The texts in a module's variable: a Literal, a tuple, or the keys of a dictionary."""
    _, node = _found(module, variable)
    if isinstance(node, ast.ClassDef):
        return ()
    inner = node.keys if isinstance(node, ast.Dict) else ast.walk(node)
    return tuple(n.value for n in inner if isinstance(n, ast.Constant) and isinstance(n.value, str))


def _option(module: str, argument: ast.arg, default: ast.expr | None, words: str) -> Option:
    kind, number, choices = "str", None, ()
    for part in _alternatives(argument.annotation):
        text = ast.unparse(part)
        if text.startswith("Literal["):
            choices = ast.literal_eval(part.slice)
            choices = choices if isinstance(choices, tuple) else (choices,)
        elif match := re.fullmatch(r"(Collection|Sequence|list)\[(\w+)\]", text):
            kind, number = match[2], "+"
        elif match := re.fullmatch(r"tuple\[(\w+)(, \w+)+\]", text):
            kind, number = match[1], text.count(",") + 1
        elif text in ("int", "float", "bool", "Path", "str"):  # rather one than several
            kind, number = text, None
        elif isinstance(part, ast.Name) and text != "PathLike":
            with suppress(LookupError):  # a class, and not a name for a Literal
                choices = names(module, text)
    usual = _constant(module, default)
    return Option(argument.arg, kind, number, choices, default is None, usual, words)


def _alternatives(annotation: ast.expr | None) -> list[ast.expr]:
    """The types that an annotation joins by |, None left out, the narrowest last."""
    if isinstance(annotation, ast.BinOp):
        return _alternatives(annotation.right) + _alternatives(annotation.left)
    given = annotation is not None and ast.unparse(annotation) != "None"
    return [annotation] if given else []


def _constant(module: str, node: ast.expr | None) -> Any:
    if isinstance(node, ast.Name):
        _, node = _found(module, node.id)
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _found(module: str, name: str) -> tuple[str, ast.AST]:
    """What a module means by a name, and the module that it is from: a function, a class, or the
    expression that is assigned to it."""
    outer, _, inner = name.rpartition(".")
    body = _tree(module).body
    if outer:
        module, node = _found(module, outer)
        body = node.body
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == inner:
            return module, node
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == inner for t in targets):
                return module, node.value
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == inner:
                    return _found(node.module, alias.name)
    raise LookupError(f"{module} has no {name}")


@cache
def _tree(module: str) -> ast.Module:
    place = ROOT.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        raise LookupError(f"{module} is not in {ROOT}")
    return ast.parse(file.read_text(encoding="utf-8"))


def _explained(docstring: str) -> dict[str, str]:
    """The lines "name: what it is" of a docstring, with their continuations, by name."""
    found: dict[str, list[str]] = {}
    entry, indent = [], 0
    for line in inspect.cleandoc(docstring).splitlines():
        depth = len(line) - len(line.lstrip())
        if match := re.fullmatch(r" *([a-z_]\w*(?:, \w+)*): +(.+)", line):
            entry, indent = [match[2]], depth
            found |= dict.fromkeys(match[1].split(", "), entry)
        elif line.strip() and depth > indent:
            entry.append(line.strip())
        elif line.strip():
            entry = []
    return {name: " ".join(lines).removesuffix(".") for name, lines in found.items()}
