# SPDX-License-Identifier: Apache-2.0
"""The painter's scene sampled by a method of your choice, the image forming step by step.

    live = Live(Painter(), {"SpaText": spatext, "text": text})
    live.beside()            # shows painter and image side by side

In code, `live.generate()` returns the image. Sampling runs in its own thread, so that
the notebook stays free, and can be stopped between two steps.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import anywidget
import ipywidgets
import traitlets
from ipywidgets.widgets.trait_types import CByteMemoryView
from PIL import Image

from spatext_lab.diffusion import few_threads
from spatext_lab.figures.png import png
from spatext_lab.scene import Scene
from spatext_lab.scene.notes import collected
from spatext_lab.text_to_image.base import ScenePipeline
from spatext_lab.widgets.painter import Painter
from spatext_lab.widgets.sources import script, style

KEPT = 64  # finished images in memory
LONGEST = 300  # letters of an error on the page


@dataclass(frozen=True)
class Request:
    """Everything that determines an image; the key under which a finished one is kept.

    Args:
        scene:                 what to sample.
        method:                name of the pipeline.
        seed:                  of the noise.
        steps:                 denoising steps.
        guidance_scale:        the guidance scale, or the caption's alone.
        region_guidance_scale: the map's own guidance scale; None for a joint one.
    """

    scene: Scene
    method: str
    seed: int = 0
    steps: int = 10
    guidance_scale: float = 2.0
    region_guidance_scale: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The pipeline's arguments beside the scene; a region scale only where there is one."""
        named = {"seed": self.seed, "num_inference_steps": self.steps}
        named |= {"guidance_scale": self.guidance_scale}
        own = self.region_guidance_scale
        return named if own is None else named | {"region_guidance_scale": own}

    @property
    def parameters(self) -> dict[str, Any]:
        """How the image was made, for its file."""
        return {"method": self.method, "scene": self.scene.to_json()} | self.settings

    @property
    def description(self) -> str:
        """The image in a sentence, for alt texts."""
        texts = ", ".join(region.text for region in self.scene.regions) or "no regions"
        return f"{self.scene.caption}, sampled by {self.method} from seed {self.seed}: {texts}"


Frame = tuple[int, Image.Image]  # the number of steps done, and the predicted image


def frames(pipeline: ScenePipeline, request: Request) -> Iterator[Frame]:
    """Yield the predicted clean image after every step; the last one is the result."""
    with few_threads(pipeline.unet):
        for done, step in enumerate(pipeline.stream(request.scene, **request.settings), start=1):
            yield done, pipeline.decode(step.x_0)[0]


class Live(anywidget.AnyWidget):
    """A widget that samples a painter's scene.

    Args:
        painter:   whose scene is sampled.
        pipelines: the methods to choose from, by name; the first one is chosen at first.

    Raises:
        ValueError: where there is no pipeline.
    """

    _esm = script("live")
    _css = style("live")

    methods = traitlets.List(traitlets.Dict()).tag(sync=True)  # name; has the map a scale?
    method = traitlets.Unicode().tag(sync=True)
    seed = traitlets.Int(0, min=0).tag(sync=True)
    steps = traitlets.Int(10, min=1, max=1000).tag(sync=True)
    guidance_scale = traitlets.Float(2.0, min=0).tag(sync=True)
    region_guidance_scale = traitlets.Float(None, allow_none=True, min=0).tag(sync=True)
    image = CByteMemoryView().tag(sync=True)  # the last finished one, a PNG
    alt = traitlets.Unicode("No image yet").tag(sync=True)

    def __init__(self, painter: Painter, pipelines: Mapping[str, ScenePipeline]) -> None:
        if not pipelines:
            raise ValueError("pipelines is empty: pass pipelines by name, {'SpaText': pipeline}")
        self.painter, self.pipelines = painter, dict(pipelines)
        self._finished: OrderedDict[Request, Image.Image] = OrderedDict()
        self._stop, self._answered, self._thread = threading.Event(), threading.Event(), None
        self._answered.set()
        has_map = [hasattr(pipeline, "st_map") for pipeline in pipelines.values()]
        methods = [
            {"name": name, "map": map_} for name, map_ in zip(pipelines, has_map, strict=True)
        ]
        super().__init__(methods=methods, method=next(iter(pipelines)))
        self.on_msg(self._asked)

    @property
    def request(self) -> Request:
        """What would be sampled now; with a scale of the map only where the method has a map."""
        scale = self.region_guidance_scale if self._has_map else None
        settings = (self.seed, self.steps, self.guidance_scale, scale)
        return Request(self.painter.scene, self.method, *settings)

    def generate(self) -> Image.Image:
        """Sample the scene as the button does, and return the image when it is finished."""
        request = self.request
        for _ in self._frames(request, threading.Event()):
            pass
        self._finish(request)
        return self._finished[request]

    def beside(self) -> ipywidgets.Box:
        """Painter and image side by side; one below the other where the page is narrow."""
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
                f"method is {proposal['value']!r}, expected one of {', '.join(self.pipelines)}"
            )
        return proposal["value"]

    def _frames(self, request: Request, stop: threading.Event) -> Iterator[Frame]:
        """`frames`, or the finished image from memory; ends early when `stop` is set."""
        if request in self._finished:
            self._finished.move_to_end(request)
            yield request.steps, self._finished[request]
            return
        for done, image in frames(self.pipelines[request.method], request):
            yield done, image
            if stop.is_set():
                return
        self._finished[request] = image
        if len(self._finished) > KEPT:
            self._finished.popitem(last=False)

    def _asked(self, _: Any, message: dict, __: Any) -> None:
        """The two buttons, and the page's question whether this kernel still has the widget."""
        if "ping" in message:
            return self.send({"working": not self._answered.is_set()})
        self._stop.set()
        if "generate" in message:
            try:
                request = self.request
            except Exception as error:  # the page shows every error
                return self.send({"problem": _problem(error)})
            self._stop, self._answered = threading.Event(), threading.Event()
            task = (request, self._stop, self._answered, self._thread)
            self._thread = threading.Thread(target=self._run, args=task, daemon=True)
            self._thread.start()

    def _run(
        self,
        request: Request,
        stop: threading.Event,
        answered: threading.Event,
        before: threading.Thread | None,
    ) -> None:
        """The sampling thread; requests run one after the other, since they share the network."""
        if before is not None:
            before.join()
        try:
            with collected() as notes:
                for done, image in self._frames(request, stop):
                    shown = png(image, request.description)
                    self.send({"done": done, "steps": request.steps}, buffers=[shown])
            answer = {"stopped": True}
            if request in self._finished:
                self._finish(request)
                answer = {"finished": True, "notes": notes}
        except BaseException as error:  # the page shows every error
            answer = {"problem": _problem(error)}
        answered.set()
        self.send(answer)

    def _finish(self, request: Request) -> None:
        self.alt = request.description
        self.image = png(self._finished[request], request.description, request.parameters)


def _problem(error: BaseException) -> str:
    """An error in one line; ValueErrors of this library are written for the user."""
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    if isinstance(error, ValueError):
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ") + "; live.generate() shows where"
