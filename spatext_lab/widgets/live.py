# SPDX-License-Identifier: Apache-2.0
"""Draw it: the painter's scene through the method of your choice, the picture forming step by step.

    live = Live(Painter(), {"SpaText": spatext, "text": text})
    live.beside()            # shows painter and picture side by side

The same without a pointer: `live.draw()` gives the picture. Sampling runs in a thread of its own,
so that the notebook stays free, and can be stopped between two steps.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import anywidget
import ipywidgets
import traitlets
from ipywidgets.widgets.trait_types import CByteMemoryView
from PIL import Image

from spatext_lab.figures.png import png
from spatext_lab.scene import Scene
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.widgets.painter import Painter
from spatext_lab.widgets.sources import script, style

KEPT = 64  # pictures that are not drawn a second time


@dataclass(frozen=True)
class Wish:
    """All that a picture depends on: two equal wishes have the same picture."""

    scene: Scene
    method: str
    seed: int = 0
    steps: int = 10
    guidance_scale: float = 2.0
    region_guidance_scale: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The pipeline's arguments beside the scene; without a region scale for who takes none."""
        given = {"num_inference_steps": self.steps, "seed": self.seed}
        given |= {"guidance_scale": self.guidance_scale}
        apart = self.region_guidance_scale
        return given if apart is None else given | {"region_guidance_scale": apart}

    @property
    def parameters(self) -> dict[str, Any]:
        """How the picture was made, for its file."""
        return {"method": self.method, "scene": self.scene.to_json()} | self.settings

    @property
    def words(self) -> str:
        """In a sentence, for those who do not see the picture."""
        texts = ", ".join(region.text for region in self.scene.regions) or "no regions"
        return f"{self.scene.caption}, drawn by {self.method} from seed {self.seed}: {texts}"


Frame = tuple[int, Image.Image]  # the number of steps done, and the picture so far


def frames(pipeline: TextToImagePipeline, wish: Wish) -> Iterator[Frame]:
    """The picture after each step, as the network would finish it from there; the last is it."""
    for done, step in enumerate(pipeline.stream(wish.scene, **wish.settings), start=1):
        yield done, pipeline.decode(step.x_0)[0]


class Live(anywidget.AnyWidget):
    """A widget that draws a painter's scene.

    painter:   whose scene is drawn.
    pipelines: the methods to choose from by name; the first is chosen to begin with.

    Raises ValueError where there is no pipeline.
    """

    _esm = script("live")
    _css = style("live")

    methods = traitlets.List(traitlets.Dict()).tag(sync=True)  # name; has the map a scale?
    method = traitlets.Unicode().tag(sync=True)
    seed = traitlets.Int(0, min=0).tag(sync=True)
    steps = traitlets.Int(10, min=1, max=1000).tag(sync=True)
    guidance_scale = traitlets.Float(2.0, min=0).tag(sync=True)
    region_guidance_scale = traitlets.Float(None, allow_none=True, min=0).tag(sync=True)
    picture = CByteMemoryView().tag(sync=True)  # the last finished one, a PNG
    alt = traitlets.Unicode("No picture yet").tag(sync=True)

    def __init__(self, painter: Painter, pipelines: Mapping[str, TextToImagePipeline]) -> None:
        if not pipelines:
            raise ValueError("pipelines is empty; give a pipeline by name, {'SpaText': pipeline}")
        self.painter, self.pipelines = painter, dict(pipelines)
        self._drawn: OrderedDict[Wish, Image.Image] = OrderedDict()
        self._stop, self._thread = threading.Event(), None
        has_map = [hasattr(pipeline, "st_map") for pipeline in pipelines.values()]
        methods = [
            {"name": name, "map": map_} for name, map_ in zip(pipelines, has_map, strict=True)
        ]
        super().__init__(methods=methods, method=next(iter(pipelines)))
        self.on_msg(self._asked)

    @property
    def wish(self) -> Wish:
        """What would be drawn now; a scale of the map's own only where the method has a map."""
        scale = self.region_guidance_scale if self._has_map else None
        return Wish(
            self.painter.scene, self.method, self.seed, self.steps, self.guidance_scale, scale
        )

    def draw(self) -> Image.Image:
        """The picture, when it is finished; what the button draws, to the pixel."""
        wish = self.wish
        for _ in self._frames(wish, threading.Event()):
            pass
        self._finish(wish)
        return self._drawn[wish]

    def beside(self) -> ipywidgets.Box:
        """Painter and picture side by side; one below the other where the page is narrow."""
        self.painter.layout.flex, self.layout.flex = "3 1 420px", "2 1 260px"
        layout = ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="12px")
        return ipywidgets.Box([self.painter, self], layout=layout)

    @property
    def _has_map(self) -> bool:
        return hasattr(self.pipelines[self.method], "st_map")

    @traitlets.validate("method")
    def _checked_method(self, proposal: Mapping) -> str:
        if proposal["value"] not in self.pipelines:
            raise traitlets.TraitError(
                f"method is {proposal['value']!r}; there are {', '.join(self.pipelines)}"
            )
        return proposal["value"]

    def _frames(self, wish: Wish, stop: threading.Event) -> Iterator[Frame]:
        """As `frames`, from memory where it was drawn before; breaks off when asked to."""
        if wish in self._drawn:
            self._drawn.move_to_end(wish)
            yield wish.steps, self._drawn[wish]
            return
        for done, picture in frames(self.pipelines[wish.method], wish):
            yield done, picture
            if stop.is_set():
                return
        self._drawn[wish] = picture
        if len(self._drawn) > KEPT:
            self._drawn.popitem(last=False)

    def _asked(self, _: Any, message: dict, __: Any) -> None:
        """The two buttons."""
        self._stop.set()
        if "draw" in message:
            before, self._stop = self._thread, threading.Event()
            task = (self.wish, self._stop, before)
            self._thread = threading.Thread(target=self._run, args=task, daemon=True)
            self._thread.start()

    def _run(self, wish: Wish, stop: threading.Event, before: threading.Thread | None) -> None:
        """In a thread of its own; one after the other, for they share the network."""
        if before is not None:
            before.join()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                for done, picture in self._frames(wish, stop):
                    self._show(done, wish, picture)
            except ValueError as error:
                return self.send({"problem": str(error)})
        if wish not in self._drawn:
            return self.send({"stopped": True})
        self._finish(wish)
        notes = [str(each.message) for each in heard if each.category is UserWarning]
        return self.send({"finished": True, "notes": notes})

    def _show(self, done: int, wish: Wish, picture: Image.Image) -> None:
        step = {"done": done, "steps": wish.steps}
        self.send(step, buffers=[png(picture, wish.words)])

    def _finish(self, wish: Wish) -> None:
        self.alt = wish.words
        self.picture = png(self._drawn[wish], wish.words, wish.parameters)
