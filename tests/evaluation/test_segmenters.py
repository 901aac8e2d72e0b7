# SPDX-License-Identifier: Apache-2.0
"""Segmenters: pictures whose scene is known, and a real Mask2Former, tiny, through the disk."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
    pipeline,
)

from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.evaluation.segmenters import (
    MIN_AREA,
    PanopticSegmenter,
    PocketSegmenter,
    SamSegmenter,
    read_photo,
    segmenter_named,
)
from spatext_lab.scene import Scene
from tests.evaluation.folders import tiny_git, tiny_sam


def test_a_drawn_picture_gives_its_scene_back():
    segmenter, found, asked = PocketSegmenter(), 0, 0
    for i in range(6):
        item = pocket_item("val", i)
        scene = Scene.from_image(Image.fromarray(item.image), segmenter, "a drawing")
        assert scene.caption == "a drawing"
        for segment in item.segments:
            if segment.mask.mean() < 2 * MIN_AREA:
                continue
            asked += 1
            words = [segment.colour, segment.label] if segment.is_thing else [segment.label]
            same = [r for r in scene.regions if all(word in r.text for word in words)]
            ious = [(r.mask & segment.mask).sum() / (r.mask | segment.mask).sum() for r in same]
            found += max(ious, default=0) > 0.8
    assert asked > 15
    assert found >= 0.9 * asked


def test_texts_and_sizes():
    item = pocket_item("val", 1)
    large = Image.fromarray(item.image).resize((200, 200))
    scene = Scene.from_image(large, PocketSegmenter())
    assert scene.caption == "A realistic image"
    assert all(region.mask.shape == (64, 64) for region in scene.regions)
    assert not any(region.text.startswith(("a orange", "an red")) for region in scene.regions)


def test_a_segment_without_a_text_is_a_random_object():
    mask = np.ones((4, 4), bool)
    scene = Scene.from_image(None, lambda image: [(None, mask)])
    assert scene.regions[0].text == "A random object"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        id2label={0: "dog", 1: "grass-merged"},
        label2id={"dog": 0, "grass-merged": 1},
    )
    place = tmp_path_factory.mktemp("m2f")
    Mask2FormerForUniversalSegmentation(config).save_pretrained(place)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(place)
    return place


def test_a_mask2former_from_the_disk(folder, monkeypatch):
    """Its weights are noise, so what it is sure of is set; the rest is transformers' own."""
    segmenter = PanopticSegmenter(folder)
    processed = segmenter.processor.post_process_panoptic_segmentation

    def answer(out, target_sizes):
        (whole,) = processed(out, threshold=0.0, target_sizes=target_sizes)
        assert whole["segmentation"].shape == (48, 80)
        numbers = torch.zeros(48, 80)
        numbers[:20, :30], numbers[40:, 70:73], numbers[30:, :40] = 1, 2, 3
        info = [{"id": 1, "label_id": 0}, {"id": 2, "label_id": 1}, {"id": 3, "label_id": 1}]
        return [{"segmentation": numbers, "segments_info": info}]

    monkeypatch.setattr(segmenter.processor, "post_process_panoptic_segmentation", answer)
    pixels = np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)
    scene = Scene.from_image(Image.fromarray(pixels), segmenter)
    region, other = scene.regions  # the second is too small
    assert region.text == "a dog"
    assert region.mask[:20, :30].all()
    assert region.mask.sum() == 600
    assert other.text == "grass"  # COCO's panoptic names are made for machines


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; pass a segmenter's folder"):
        PanopticSegmenter(tmp_path)


# --- SAM ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    return tiny_sam(tmp_path_factory.mktemp("sams") / "sam")


def test_a_sam_from_the_disk_gives_what_transformers_pipeline_gives(sam):
    """Its weights are noise, so every mask is let through."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    every = {"pred_iou_thresh": -9.0, "stability_score_thresh": -9.0, "points_per_crop": 4}
    every |= {"crops_nms_thresh": 1.0}
    wanted = pipeline("mask-generation", model=str(sam))(image, **every)["masks"]
    segmenter = segmenter_named(str(sam))
    assert isinstance(segmenter, SamSegmenter)
    assert list(segmenter(image)) == []  # of what it is sure of
    generate = segmenter.generate
    segmenter.generate = lambda image: generate(image, **every)
    masks = [mask for text, mask in segmenter(image) if text is None]
    assert len(wanted) > 1
    assert masks[0].shape == (40, 60)
    union = np.logical_or.reduce([np.asarray(mask, bool) for mask in wanted])
    assert np.array_equal(np.logical_or.reduce(masks), union)


def test_of_a_thing_and_its_parts_each_pixel_has_one_region(sam):
    thing, part, crumb = (np.zeros((40, 60), bool) for _ in range(3))
    thing[:30, :40], part[10:20, 10:30], crumb[35:37, 50:52] = True, True, True
    segmenter = SamSegmenter(sam)
    segmenter.generate = lambda image: {"masks": [crumb, torch.tensor(thing), part]}
    (_, large), (_, small) = segmenter(Image.new("RGB", (60, 40)))
    assert np.array_equal(small, part)
    assert np.array_equal(large, thing & ~part)


# --- by name, from files --------------------------------------------------------------------------


def test_segmenters_by_name(folder, monkeypatch, tmp_path):
    assert isinstance(segmenter_named("judge"), PocketSegmenter)
    assert isinstance(segmenter_named(str(folder)), PanopticSegmenter)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="segmenter is 'mask2former'; pass judge, or a"):
        segmenter_named("mask2former")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mask2former").symlink_to(folder)
    assert isinstance(segmenter_named("mask2former"), PanopticSegmenter)


def damage_weights(place):
    (place / "model.safetensors").write_bytes(b"half")


def damage_config(place):
    (place / "config.json").write_text("{")


def another_model(place):
    (place / "config.json").write_text('{"model_type": "bert"}')


def remote_code(place):
    config = json.loads((place / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (place / "config.json").write_text(json.dumps(config))
    (place / "own.py").write_text("raise SystemExit('executed')")


def a_captioner(place):
    shutil.rmtree(place)
    tiny_git(place)


@pytest.mark.parametrize(
    "harm", [damage_weights, damage_config, another_model, remote_code, a_captioner]
)
def test_a_folder_that_is_no_segmenter_is_named(folder, tmp_path, harm):
    shutil.copytree(folder, place := tmp_path / "model")
    harm(place)
    with pytest.raises((ValueError, OSError), match="cannot be read as a segmenter"):
        segmenter_named(str(place))


def test_photos_are_upright(tmp_path):
    lying = Image.new("RGB", (8, 4), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    lying.save(tmp_path / "phone.jpg", exif=exif)
    assert read_photo(tmp_path / "phone.jpg").size == (4, 8)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"text", b"\xff\xd8\xff\xe0half"])
def test_what_is_no_image_is_named(tmp_path, content):
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"photo.png cannot be read as an image"):
        read_photo(tmp_path / "photo.png")
    with pytest.raises(FileNotFoundError):
        read_photo(tmp_path / "nowhere.png")
