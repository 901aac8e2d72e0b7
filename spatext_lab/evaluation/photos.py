# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab scene`: a photo becomes a scene: its caption, its segments, and a text for each."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from spatext_lab.datasets.coco.captions import captions_of
from spatext_lab.evaluation.captioners import Captioner, clip_names, described
from spatext_lab.evaluation.segmenters import read_photo, segmenter_named
from spatext_lab.scene import Region, Scene


def photo_scene(
    photo: Path,
    *,
    segmenter: str,
    caption: str | None = None,
    captioner: str | None = None,
    names: Sequence[str] = (),
    clip: str = "sd15",
) -> tuple[Image.Image, Scene]:
    """The scene of a photo, and the photo upright.

    Without `caption`, a photo of a COCO folder has its first caption there, and any other the one
    that the captioner gives it.

    Args:
        photo: an image file.
        segmenter: judge (for pocket images), or a folder in models/ of a panoptic model such as
            Mask2Former, or of SAM, which finds segments without names.
        caption: text of the whole image.
        captioner: a folder of BLIP or GIT, which describes the crop of each segment; the name is
            kept where it repeats writing that is in the photo.
        names: names for segments without one: CLIP takes the nearest.
        clip: model with the CLIP for `names`.

    Raises:
        FileNotFoundError: the photo or a folder is not there.
        ValueError: a file cannot be decoded, or a folder holds another kind of model.
    """
    image, segment = read_photo(photo), segmenter_named(segmenter)
    describe = Captioner(captioner) if captioner else None
    name = clip_names(names, clip) if names else None
    if caption is None:
        caption = next(iter(captions_of(photo)), None) or (describe and describe([image])[0])
    pairs = list(segment(image))
    if name:
        given = name(image, [mask for text, mask in pairs if not text])
        pairs = [(text or given.pop(0), mask) for text, mask in pairs]
    scene = Scene.from_image(image, lambda _: pairs, **({"caption": caption} if caption else {}))
    if not describe:
        return image, scene
    texts = described(scene, image, describe)
    regions = zip(texts, scene.regions, strict=True)
    return image, Scene(scene.caption, [Region(text, mask=r.mask) for text, r in regions])
