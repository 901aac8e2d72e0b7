# SPDX-License-Identifier: Apache-2.0
"""The widgets' scripts and styles: plain files beside this one, what they share put in front."""

from __future__ import annotations

import hashlib
import html
import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def script(name: str) -> str:
    """One widget's ES module."""
    return _read("shared.js") + _read(f"{name}.js")


def style(name: str) -> str:
    """One widget's style sheet."""
    return _read("shared.css") + _read(f"{name}.css")


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def markup(name: str, data: Any, picture: str, alt: str) -> str:
    """A widget that needs no kernel, as HTML: one picture, and a script that builds the rest.

    data: what the script is given, as JSON. picture: base64 of a WebP. alt: of the picture.
    """
    # No text can end the script: there is no "<" in it but as an escape.
    text = json.dumps(data).replace("<", "\\u003c")
    mark = f"sx-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    source = f"{script(name)}\nbegin(document.querySelectorAll('.{mark}:not([data-on])'), {text});"
    image = f'<img alt="{html.escape(alt)}" src="data:image/webp;base64,{picture}">'
    return (
        f"<style>{style(name)}</style>"
        f'<div class="sx sx-{name} {mark}">{image}</div>'
        f"<script>(() => {{\n{source}\n}})();</script>"
    )
