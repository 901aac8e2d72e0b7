# SPDX-License-Identifier: Apache-2.0
"""spatext_lab: how to condition text-to-image diffusion on *what* goes *where*.

    from spatext_lab import Region, Scene, SpaTextPipeline, zoo

    scene = Scene("a meadow at noon", [Region("a red ball", box=(0.1, 0.5, 0.4, 0.9))])
    pipeline = SpaTextPipeline.from_pretrained(zoo.folder("pocket", "spatext"))
    image = pipeline(scene, seed=0).images[0]

The names below are loaded when first used, so that `import spatext_lab` costs next to nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# Before anything imports tqdm, which reads it: progress bars of any library wait for two seconds.
os.environ.setdefault("TQDM_DELAY", "2")

__version__ = "0.2.0.dev0"

_HOME = {
    "ReCoPipeline": "spatext_lab.reco.pipeline",
    "Region": "spatext_lab.scene",
    "Scene": "spatext_lab.scene",
    "SpaTextPipeline": "spatext_lab.spatext.pipeline",
    "TextToImagePipeline": "spatext_lab.text_to_image.pipeline",
}

__all__ = [
    "ReCoPipeline",
    "Region",
    "Scene",
    "SpaTextPipeline",
    "TextToImagePipeline",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        known = ", ".join(_HOME)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {known}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
