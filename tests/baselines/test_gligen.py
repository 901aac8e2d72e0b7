# SPDX-License-Identifier: Apache-2.0
"""GLIGEN: closed gates are the base, its layers against slow loops, and what a folder holds."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_fourier_embeds_from_boundingbox
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from spatext_lab import zoo
from spatext_lab.baselines.gated import GroundedDenoiser, is_gated, with_gates
from spatext_lab.baselines.gligen import GATED, GligenPipeline
from spatext_lab.diffusion import UNetDenoiser
from spatext_lab.scene import Region, Scene
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.text_to_image.unet import PocketUNet
from tests.tiny import BARE, OTHER, SCENE, WIDTH, final, tiny_gligen, tiny_model

TWO = {"num_inference_steps": 2}
OPEN = ("alpha_attn", "alpha_dense")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def base(root) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(root / "text-to-image")


@pytest.fixture(scope="module")
def closed(root) -> GligenPipeline:
    return GligenPipeline.from_base(root / "text-to-image")


@pytest.fixture(scope="module")
def gligen(root) -> GligenPipeline:
    return GligenPipeline.from_pretrained(root / "gligen")


def pocket(base: TextToImagePipeline) -> TextToImagePipeline:
    """The same with a U-Net that has positions inside, as the pocket base has."""
    shape = {k: v for k, v in base.unet.config.items() if not k.startswith("_")}
    return TextToImagePipeline.from_pipe(base, unet=PocketUNet(**shape))


# --- gates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions_inside", [False, True])
def test_with_closed_gates_the_image_is_the_bases_to_the_bit(base, positions_inside):
    start = pocket(base) if positions_inside else base
    model = GligenPipeline.from_pipe(start, unet=with_gates(start.unet))
    assert type(model.unet) is type(start.unet)
    for scenes in ([SCENE, OTHER], [BARE]):
        assert torch.equal(final(model, scenes, **TWO), final(start, scenes, **TWO))
        plain = {"guidance_scale": 1.0, "num_images_per_prompt": 2, "seed": 5}
        assert torch.equal(
            final(model, scenes, **plain, **TWO), final(start, scenes, **plain, **TWO)
        )
    assert model(SCENE, **TWO).images[0].tobytes() == start(SCENE, **TWO).images[0].tobytes()


def test_with_open_gates_boxes_and_texts_count(gligen, base):
    image = final(gligen, SCENE, **TWO)
    assert (image - final(base, SCENE, **TWO)).abs().max() > 1e-3
    moved = [Region(r.text, box=(0, 0, 0.3, 0.3)) for r in SCENE.regions]
    renamed = [Region("a boat", box=r.box) for r in SCENE.regions]
    for regions in (moved, renamed, SCENE.regions[:1]):
        assert (image - final(gligen, Scene(SCENE.caption, regions), **TWO)).abs().max() > 1e-4
    turned = Scene(SCENE.caption, SCENE.regions[::-1])  # attention over a set
    assert_close(final(gligen, turned, **TWO), image, atol=1e-4, rtol=1e-4)


def test_the_new_layers_do_not_touch_the_global_generator(base):
    torch.manual_seed(3)
    one = with_gates(base.unet).state_dict()
    after = torch.rand(())
    two = with_gates(base.unet).state_dict()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(()))


def test_only_a_unet_with_gates_is_taken(base):
    with pytest.raises(ValueError, match="unet has no gated layers; pass with_gates"):
        GligenPipeline.from_pipe(base)


# --- the layers, against slow loops ---------------------------------------------------------------


def test_fourier_features_against_a_slow_loop():
    """Of each of 8 frequencies 100^(k / 8): the sines of the four numbers, then their cosines."""
    boxes = torch.rand(2, 3, 4)
    got = get_fourier_embeds_from_boundingbox(8, boxes)
    for i in range(2):
        for n in range(3):
            want = []
            for k in range(8):
                for wave in (math.sin, math.cos):
                    want += [wave(100 ** (k / 8) * v) for v in boxes[i, n].tolist()]
            assert_close(got[i, n], torch.tensor(want), atol=1e-4, rtol=1e-4)


def numbers(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: w.detach().double().numpy() for name, w in module.state_dict().items()}


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def grounding_token(w: dict, text: np.ndarray, place: np.ndarray) -> np.ndarray:
    h = np.concatenate([text, place])
    for layer in (0, 2, 4):
        h = w[f"linears.{layer}.weight"] @ h + w[f"linears.{layer}.bias"]
        h = silu(h) if layer < 4 else h
    return h


def grounding_tokens(model: GligenPipeline, objects: torch.Tensor) -> np.ndarray:
    """The tokens of one scene by hand; of an object that is not there the learned null ones."""
    w, tokens = numbers(model.unet.position_net), []
    for present, *box_and_text in objects.double().tolist():
        box, text = box_and_text[:4], np.array(box_and_text[4:])
        waves = (math.sin, math.cos)
        place = [wave(100 ** (k / 8) * v) for k in range(8) for wave in waves for v in box]
        if not present:
            text, place = w["null_positive_feature"], w["null_position_feature"]
        tokens.append(grounding_token(w, text, np.array(place)))
    return np.stack(tokens)


@pytest.fixture
def stirred(gligen) -> Iterator[GligenPipeline]:
    """Null embeddings begin at zero; here they are something."""
    net = gligen.unet.position_net
    before = {name: w.clone() for name, w in net.state_dict().items()}
    for weight in (net.null_positive_feature, net.null_position_feature):
        torch.nn.init.normal_(weight)
    yield gligen
    net.load_state_dict(before)


def test_grounding_tokens_against_a_slow_loop(stirred):
    objects = stirred.objects([SCENE, BARE])
    present, boxes, texts = objects[..., 0], objects[..., 1:5], objects[..., 5:]
    with torch.no_grad():
        got = stirred.unet.position_net(boxes, present, texts).double().numpy()
    for k in range(2):
        np.testing.assert_allclose(got[k], grounding_tokens(stirred, objects[k]), atol=1e-4)
    assert np.ptp(got[1], axis=0).max() < 1e-5  # without regions: null tokens alone
    np.testing.assert_allclose(got[1, 0], got[0, 2], atol=1e-5)  # as padding is


def test_tokens_of_different_objects_differ_before_training(closed):
    """In text or box; so that attention can tell them apart."""
    boxes = ((0.1, 0.1, 0.4, 0.4), (0.6, 0.6, 0.9, 0.9))
    scene = Scene("c", [Region(text, box=b) for text in ("a red ball", "a house") for b in boxes])
    objects = closed.objects([scene])[:, :4]
    with torch.no_grad():
        tokens = closed.unet.position_net(objects[..., 1:5], objects[..., 0], objects[..., 5:])[0]
    alike = torch.nn.functional.cosine_similarity(tokens[:, None], tokens, dim=-1)
    assert alike[~torch.eye(4, dtype=torch.bool)].mean() < 0.85
    assert tokens.std() > 0.3  # beside cells of about 1; as diffusers begins, 0.04


def test_new_layers_begin_as_he_wrote(closed):
    """Weights of variance 2 / inputs, biases of 0: in all that a token passes before attention."""
    for name, layer in closed.unet.named_modules():
        begins = name.startswith("position_net.linears.") or name.endswith(".fuser.linear")
        if begins and isinstance(layer, torch.nn.Linear):
            assert layer.weight.var().item() == pytest.approx(2 / layer.in_features, rel=0.4)
            assert not layer.bias.any()


def layer_norm(x: np.ndarray, w: dict, name: str) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def slow_gated_attention(w: dict, cells: np.ndarray, tokens: np.ndarray, heads: int) -> np.ndarray:
    """v + tanh(a) SelfAttention([v, h])[cells], then + tanh(d) FF; one query after the other."""
    h = tokens @ w["linear.weight"].T + w["linear.bias"]
    both = layer_norm(np.concatenate([cells, h]), w, "norm1")
    q, k, v = (both @ w[f"attn.to_{name}.weight"].T for name in "qkv")
    size, out = q.shape[1] // heads, cells.copy()
    for i in range(len(cells)):
        row = np.zeros(q.shape[1])
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            logits = np.array([q[i, own] @ k[j, own] for j in range(len(both))]) / math.sqrt(size)
            weights = np.exp(logits - logits.max())
            row[own] = weights / weights.sum() @ v[:, own]
        row = w["attn.to_out.0.weight"] @ row + w["attn.to_out.0.bias"]
        out[i] += np.tanh(w["alpha_attn"]) * row
    for i, row in enumerate(layer_norm(out, w, "norm2")):
        value, gate = np.split(w["ff.net.0.proj.weight"] @ row + w["ff.net.0.proj.bias"], 2)
        gelu = np.array([g / 2 * (1 + math.erf(g / math.sqrt(2))) for g in gate])
        row = w["ff.net.2.weight"] @ (value * gelu) + w["ff.net.2.bias"]
        out[i] += np.tanh(w["alpha_dense"]) * row
    return out


def test_gated_attention_against_a_slow_loop(gligen):
    """In the network itself: what enters and leaves a gated layer while it samples."""
    seen = []
    fuser = gligen.unet.mid_block.attentions[0].transformer_blocks[0].fuser
    hook = fuser.register_forward_hook(lambda _, given, out: seen.append((*given, out)))
    final(gligen, SCENE, num_inference_steps=1, guidance_scale=1.0)
    hook.remove()
    ((cells, tokens, out),) = seen
    assert tokens.shape == (1, 8, WIDTH)
    tokens = tokens[0].double().numpy()
    by_hand = grounding_tokens(gligen, gligen.objects([SCENE])[0])
    np.testing.assert_allclose(tokens, by_hand, atol=1e-4)
    want = slow_gated_attention(numbers(fuser), cells[0].double().numpy(), tokens, 2)
    np.testing.assert_allclose(out[0].double().numpy(), want, atol=1e-4)
    assert np.abs(want - cells[0].double().numpy()).max() > 0.01


# --- scenes ---------------------------------------------------------------------------------------


def test_objects_are_presence_box_and_the_state_of_the_end_token(gligen):
    mask = np.zeros((8, 8), bool)
    mask[2:4, 1:7] = True
    scene = Scene("c", [SCENE.regions[0], Region("a long boat on the sea", mask=mask)])
    objects = gligen.objects([scene, BARE])
    assert objects.shape == (2, 8, 5 + WIDTH)
    assert_close(objects[0, 0, :5], torch.tensor([1, *SCENE.regions[0].box]))
    assert_close(objects[0, 1, :5], torch.tensor([1, 1 / 8, 2 / 8, 7 / 8, 4 / 8]))
    assert not objects[0, 2:].any()
    assert not objects[1].any()
    for k, region in enumerate(scene.regions):  # alone, without padding
        ids = gligen.tokenizer(region.text, return_tensors="pt").input_ids
        assert ids[0, -1] == gligen.tokenizer.eos_token_id
        with torch.no_grad():
            want = gligen.text_encoder(ids).last_hidden_state[0, -1]
        assert_close(objects[0, k, 5:], want, atol=1e-5, rtol=1e-5)


def test_guidance_goes_away_from_no_caption_and_no_objects(gligen):
    """One call of twice the batch a step, against two calls."""
    condition = gligen.condition([SCENE, OTHER])
    nothing = gligen.condition([Scene(""), Scene("")])
    x_t = torch.randn(2, 4, 16, 16)
    calls = []
    hook = gligen.unet.register_forward_pre_hook(
        lambda _, given, __: calls.append(len(given[0])), with_kwargs=True
    )
    got = final(gligen, [SCENE, OTHER], latents=x_t, guidance_scale=3.0, num_inference_steps=1)
    hook.remove()
    assert calls == [4]
    denoiser, t = gligen.denoiser(), torch.full((2,), 999)
    with torch.no_grad():
        null, full = denoiser(x_t, t, nothing), denoiser(x_t, t, condition)
    alpha = gligen.scheduler.alphas_cumprod[999]
    want = alpha.sqrt() * x_t - (1 - alpha).sqrt() * (null + 3 * (full - null))
    assert_close(got, want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("beta", "grounded"), [(0.0, 0), (0.3, 3), (0.5, 5), (1.0, 10)])
def test_the_first_fraction_of_the_steps_has_grounding(gligen, base, beta, grounded):
    model = GligenPipeline.from_pipe(gligen, scheduled_sampling_beta=beta)
    seen = []
    hook = model.unet.position_net.register_forward_hook(lambda *_: seen.append(True))
    steps = [len(seen) for _ in model.stream(SCENE, num_inference_steps=10)]
    hook.remove()
    assert steps == [min(k + 1, grounded) for k in range(10)]
    if beta == 0:
        assert torch.equal(final(model, SCENE, **TWO), final(base, SCENE, **TWO))


def test_a_condition_without_objects_is_the_bases(gligen, base):
    x_t, t = torch.randn(2, 4, 16, 16), torch.tensor([900, 30])
    condition = base.condition([SCENE, OTHER])
    with torch.no_grad():
        got = GroundedDenoiser(gligen.unet)(x_t, t, condition)
        assert torch.equal(got, UNetDenoiser(base.unet)(x_t, t, condition))


def test_too_many_regions_and_long_texts_are_named(root):
    model = GligenPipeline.from_pretrained(root / "gligen", max_objects=2)
    three = Scene("c", [*SCENE.regions, Region("a blue cup", box=(0, 0, 0.1, 0.1))])
    with pytest.warns(UserWarning, match=r"regions\[2:\] \(a blue cup\) are dropped.* takes 2"):
        image = final(model, three, **TWO)
    assert torch.equal(image, final(model, Scene("c", SCENE.regions), **TWO))
    with pytest.warns(UserWarning, match=r"longer than 77 tokens: 'the end' is truncated"):
        model.objects([Scene("c", [Region("a " * 75 + "the end", box=(0, 0, 1, 1))])])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scheduled_sampling_beta": 1.5}, r"scheduled_sampling_beta is 1.5; pass a number from 0"),
        ({"max_objects": 0}, "max_objects is 0; pass a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(gligen, given, message):
    with pytest.raises(ValueError, match=message):
        GligenPipeline.from_pipe(gligen, **given)


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture
def place(root, tmp_path) -> Path:
    """A folder of gated layers beside its base, to be damaged."""
    for part in ("gligen", "text-to-image"):
        shutil.copytree(root / part, tmp_path / part)
    return tmp_path / "gligen"


def test_a_folder_holds_the_gated_layers_alone(root, gligen, base):
    files = {p.relative_to(root / "gligen").as_posix() for p in (root / "gligen").rglob("*.*")}
    assert files == {"model_index.json", GATED}
    weights = load_file(root / "gligen" / GATED)
    old, new = base.unet.state_dict(), gligen.unet.state_dict()
    assert weights.keys() == new.keys() - old.keys() == {n for n in new if is_gated(n)}
    assert all(torch.equal(value, new[name]) for name, value in weights.items())
    assert all(torch.equal(value, new[name]) for name, value in old.items())


def test_what_is_saved_is_what_is_read(place, gligen):
    model = tiny_gligen(place.parent / "text-to-image")
    model.register_to_config(scheduled_sampling_beta=0.5, max_objects=3)
    for name, weight in model.unet.named_parameters():
        if is_gated(name):
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(place)
    again = GligenPipeline.from_pretrained(place)
    assert (again.config.scheduled_sampling_beta, again.config.max_objects) == (0.5, 3)
    assert torch.equal(final(again, SCENE, **TWO), final(model, SCENE, **TWO))
    assert not torch.equal(final(again, SCENE, **TWO), final(gligen, SCENE, **TWO))
    half = GligenPipeline.from_pretrained(place, torch_dtype=torch.float16)
    assert {w.dtype for w in half.unet.parameters()} == {torch.float16}


def test_the_base_may_lie_elsewhere(place, gligen, tmp_path, monkeypatch):
    want = final(gligen, SCENE, **TWO)
    elsewhere = shutil.move(tmp_path / "text-to-image", tmp_path / "elsewhere")
    model = GligenPipeline.from_pretrained(place, base=elsewhere)
    assert torch.equal(final(model, SCENE, **TWO), want)
    (tmp_path / "pocket").mkdir()
    shutil.move(elsewhere, tmp_path / "pocket" / "text-to-image")
    monkeypatch.setattr(zoo, "_POCKETS", (tmp_path / "pocket",))
    assert torch.equal(final(GligenPipeline.from_pretrained(place), SCENE, **TWO), want)


def drop_a_weight(place: Path) -> None:
    weights = load_file(place / GATED)
    weights.popitem()
    save_file(weights, place / GATED)


def change_a_shape(place: Path) -> None:
    weights = load_file(place / GATED)
    weights["position_net.null_positive_feature"] = torch.zeros(3)
    save_file(weights, place / GATED)


def change_the_base(place: Path) -> None:
    name = "text-to-image/unet/diffusion_pytorch_model.safetensors"
    weights = load_file(place.parent / name)
    save_file({k: v + 1 for k, v in weights.items()}, place.parent / name)


def name_code(place: Path) -> None:
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps(index | {"auto_map": "x"}))


def be_reco(place: Path) -> None:
    (place / "model_index.json").write_text('{"_class_name": "ReCoPipeline"}')


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (drop_a_weight, ValueError, "1 weights do not fit the base, such as"),
        (change_a_shape, ValueError, "cannot be read: .*null_positive_feature"),
        (change_the_base, ValueError, "gligen was trained on another base than .*text-to-image"),
        (name_code, ValueError, "auto_map is 'x'"),
        (be_reco, ValueError, "gligen is a ReCoPipeline; pass the folder of a GligenPipeline"),
        (lambda p: (p / GATED).write_bytes(b"x" * 99), ValueError, "is damaged"),
        (lambda p: (p / GATED).unlink(), FileNotFoundError, "safetensors is missing"),
        (lambda p: (p / "model_index.json").unlink(), FileNotFoundError, "has no model_index.json"),
        (lambda p: (p / "x.py").write_text(""), ValueError, "is code"),
    ],
)
def test_what_is_no_whole_folder_is_refused(place, spoil, error, message):
    spoil(place)
    with pytest.raises(error, match=message):
        GligenPipeline.from_pretrained(place)
