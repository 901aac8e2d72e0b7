# SPDX-License-Identifier: Apache-2.0
"""The widgets' scripts and styles: plain files beside this one, what they share put in front."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def script(name: str) -> str:
    """One widget's ES module."""
    return _read("shared.js") + _read(f"{name}.js")


def style(name: str) -> str:
    """One widget's style sheet."""
    return _read("shared.css") + _read(f"{name}.css")


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
