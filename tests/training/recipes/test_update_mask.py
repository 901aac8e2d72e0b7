# SPDX-License-Identifier: Apache-2.0
"""The update mask's recipe: its examples are steps of SpaText's own trajectories."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from spatext_lab.baselines.summaries.update_mask import UpdateMaskNetwork
from spatext_lab.datasets.pocket import pocket_item
from spatext_lab.spatext.pipeline import SpaTextPipeline
from spatext_lab.training.recipes import update_mask
from tests.training.steps import PLAN, losses

pytestmark = pytest.mark.usefixtures("small")


def test_examples_are_the_steps_that_the_pipeline_takes(root, monkeypatch):
    monkeypatch.setattr(update_mask, "STEPS", (3, 2))
    monkeypatch.setattr(update_mask, "CHUNK", 2)
    model = SpaTextPipeline.from_pretrained(root / "spatext")
    found = update_mask.trajectories(model, 4, seed=6)
    assert len(found.x_t) == 2 * 2 + 2 * 1  # all steps but the first
    row = {
        (int(scene), int(t)): k
        for k, (scene, t) in enumerate(zip(found.scene, found.t, strict=True))
    }
    for index, count in ((0, 3), (1, 3), (2, 2), (3, 2)):
        scene = update_mask.scene_of(index)
        steps = list(model.stream(scene, seed=6 + index, num_inference_steps=count))
        assert_close(found.st_maps[index], model.st_map(scene))
        for before, step in pairwise(steps):
            k = row[index, step.t]
            assert_close(found.x_t[k], before.x_t[0], atol=1e-4, rtol=1e-4)
            moved = (step.x_0 - before.x_0)[0].square().mean(0).sqrt()
            clear = (moved - update_mask.LEAST_CHANGE).abs() > 1e-4
            assert torch.equal(found.changed[k][clear], moved[clear] > update_mask.LEAST_CHANGE)


def test_scenes_are_some_large_segments_of_training_images():
    counts = set()
    for index in range(30):
        scene, item = update_mask.scene_of(index), pocket_item("train", index)
        large = {s.text for s in item.segments if s.mask.mean() >= 0.02}
        assert {region.text for region in scene.regions} <= large
        assert scene.caption in item.captions
        counts.add(len(scene.regions))
    assert len(counts) > 2


def test_a_saved_mask_is_the_trained_one(tmp_path):
    job = update_mask.make(PLAN, "cpu")
    losses(job, same_data=False)
    job.save(tmp_path)
    again = UpdateMaskNetwork.from_pretrained(tmp_path).eval()
    x_t, t, st_map = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        assert_close(again(x_t, t, st_map), job.module.eval()(x_t, t, st_map), atol=2e-2, rtol=2e-2)
