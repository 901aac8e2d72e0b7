# SPDX-License-Identifier: Apache-2.0
"""The widgets' scripts and styles: plain files beside this module, joined without a build step."""

from __future__ import annotations

import hashlib
import html
import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def script(name: str) -> str:
    """A widget's ES module: shared.js, the parts NAME_*.js, and NAME.js."""
    parts = sorted(path.name for path in _HERE.glob(f"{name}_*.js"))
    return "".join(map(_read, ("shared.js", *parts, f"{name}.js")))


def style(name: str) -> str:
    """A widget's style sheet."""
    return _read("shared.css") + _read(f"{name}.css")


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def markup(name: str, data: Any, image: str, alt: str) -> str:
    """A widget that needs no kernel, as HTML: one image, and a script that builds the rest.

    Args:
        name:  of the widget's script and style.
        data:  the script's input, as JSON.
        image: what is seen without scripts, base64 of a WebP.
        alt:   its alt text.
    """
    # No text can end the script: every "<" in it is escaped.
    text = json.dumps(data).replace("<", "\\u003c")
    mark = f"sx-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    source = f"{script(name)}\nbegin(document.querySelectorAll('.{mark}:not([data-on])'), {text});"
    first = f'<img alt="{html.escape(alt)}" src="data:image/webp;base64,{image}">'
    return (
        f"<style>{style(name)}</style>"
        f'<div class="sx sx-{name} {mark}">{first}</div>'
        f"<script>(() => {{\n{source}\n}})();</script>"
    )
