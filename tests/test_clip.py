# SPDX-License-Identifier: Apache-2.0
"""CLIP's functions against open_clip itself, Pillow's resizing and a loop over the pixels."""

import copy
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPTokenizer

from spatext_lab.clip import CONFIG_NAME, WEIGHTS_NAME, Clip, segment_crop, truncated
from tests.tiny import tiny_model

TEXTS = ["a red ball", "", "zebras & quartz, 42 of them!", "a fish with red stripes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model")) / "spatext" / "clip"


@pytest.fixture(scope="module")
def clip(folder) -> Clip:
    return Clip.from_pretrained(folder)


# --- crops ----------------------------------------------------------------------------------------


def slow_crop(image: Tensor, mask: Tensor, size: int) -> np.ndarray:
    """The same by hand: look for the edges, copy pixel by pixel, let Pillow do the resizing."""
    height, width = mask.shape
    inside = [(y, x) for y in range(height) for x in range(width) if mask[y, x]]
    top, bottom = min(y for y, _ in inside), max(y for y, _ in inside)
    left, right = min(x for _, x in inside), max(x for _, x in inside)
    side = max(bottom - top, right - left) + 1
    y0 = top - (side - (bottom - top + 1)) // 2
    x0 = left - (side - (right - left + 1)) // 2
    square = np.zeros((3, side, side), np.float32)
    for y, x in inside:
        square[:, y - y0, x - x0] = image[:, y, x]
    channels = [Image.fromarray(channel) for channel in square]
    return np.stack([c.resize((size, size), Image.Resampling.BILINEAR) for c in channels])


MASKS = {
    "in the middle": np.s_[5:12, 8:11],
    "wide": np.s_[10:13, 2:19],
    "in a corner, its square reaching off the image": np.s_[0:9, 0:2],
    "at the other corner": np.s_[18:20, 7:24],
    "one pixel": np.s_[3:4, 4:5],
    "the whole image": np.s_[:, :],
}


@pytest.mark.parametrize("size", [7, 16, 40])
@pytest.mark.parametrize("where", MASKS)
def test_crops_against_a_slow_loop(where, size):
    image, mask = torch.rand(3, 20, 24), torch.zeros(20, 24, dtype=torch.bool)
    mask[MASKS[where]] = True
    if mask.sum() > 20:  # with holes, as segments have
        mask &= torch.rand(20, 24) < 0.7
    crop = segment_crop(image, mask, size)
    assert_close(crop, torch.from_numpy(slow_crop(image, mask, size)), atol=1e-5, rtol=0)


def test_outside_of_a_segment_is_black():
    """An all-white image, a segment as large as the crop: white inside, black outside."""
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[4:36, 6:14] = mask[20:24, 6:30] = True  # 32 high, 24 wide: 4 columns more on each side
    crop = segment_crop(torch.ones(3, 40, 40), mask, 32)
    inside = torch.nn.functional.pad(mask[4:36, 6:30], (4, 4)).float()
    assert_close(crop, inside.expand(3, -1, -1))


def test_what_lies_outside_a_segment_makes_no_difference(clip):
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[4:12, 6:16] = True
    one, two = torch.rand(2, 3, 20, 20)
    two[:, mask] = one[:, mask]
    with torch.no_grad():
        a, b = clip.encode_segments(torch.stack([one, two]), torch.stack([mask, mask]))
    assert_close(a, b)


def test_a_segment_may_lie_anywhere(clip):
    """The crop moves with it, so the embedding stays."""
    images, masks = torch.zeros(2, 3, 30, 30), torch.zeros(2, 30, 30, dtype=torch.bool)
    patch = torch.rand(3, 9, 6)
    for k, (y, x) in enumerate([(0, 1), (21, 24)]):
        images[k, :, y : y + 9, x : x + 6] = patch
        masks[k, y : y + 9, x : x + 6] = True
    with torch.no_grad():
        a, b = clip.encode_segments(images, masks)
    assert_close(a, b)


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="mask is empty"):
        segment_crop(torch.rand(3, 8, 8), torch.zeros(8, 8, dtype=torch.bool), 4)


def read_ids(clip: Clip, texts: list[str]) -> Tensor:
    """The ids that reach the network."""
    seen = []
    hook = clip.model.token_embedding.register_forward_pre_hook(lambda _, ids: seen.extend(ids))
    try:
        clip.encode_text(texts)
    finally:
        hook.remove()
    return seen[0]


# --- embeddings -----------------------------------------------------------------------------------


@torch.no_grad()
def test_embeddings_have_length_one(clip):
    masks = torch.rand(4, 20, 20) < 0.5
    for embeddings in (
        clip.encode_text(TEXTS),
        clip.encode_images(torch.rand(4, 3, 50, 40)),
        clip.encode_segments(torch.rand(4, 3, 20, 20), masks),
    ):
        assert embeddings.shape == (4, clip.embedding_dim)
        assert_close(embeddings.norm(dim=1), torch.ones(4))
        assert not torch.allclose(embeddings[0], embeddings[1], atol=1e-3)


@torch.no_grad()
def test_embeddings_against_plain_open_clip(clip, folder):
    """The folder read without this project: the same embeddings of the same texts and images."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    theirs = torch.nn.functional.normalize(model.eval().encode_text(tokens), dim=-1)
    assert_close(clip.encode_text(TEXTS), theirs)
    size = clip.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    vector = model.encode_image(preprocess(Image.fromarray(pixels))[None])
    ours = clip.encode_images(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    assert_close(ours, torch.nn.functional.normalize(vector, dim=-1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_pictures_of_any_size_are_brought_to_the_networks(clip):
    large = torch.rand(2, 3, 64, 64)
    channels = [Image.fromarray(channel.numpy()) for channel in large.flatten(0, 1)]
    small = [np.array(c.resize((16, 16), Image.Resampling.BILINEAR)) for c in channels]
    assert clip.image_size == 16
    by_hand = clip.encode_images(torch.from_numpy(np.stack(small)).view(2, 3, 16, 16))
    assert_close(clip.encode_images(large), by_hand, atol=1e-4, rtol=1e-4)


def test_texts_are_read_by_the_tokenizer_of_transformers(clip, folder):
    """The same ids in the same order; the folder's tokenizer fills up to the context's length."""
    plain = CLIPTokenizer.from_pretrained(folder)
    ids = plain(TEXTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(read_ids(clip, TEXTS), ids)
    assert ids.shape == (len(TEXTS), clip.settings["model_cfg"]["text_cfg"]["context_length"])


@torch.no_grad()
def test_a_text_that_is_too_long_is_truncated(clip):
    """Start and end token are kept: the embedding is read off at the end token."""
    long = "a red ball and " * 30
    ids = read_ids(clip, [long])
    assert ids.shape == (1, 32)
    assert ids[0, -1] == ids.max()  # the end token is the last of the vocabulary
    assert torch.isfinite(clip.encode_text([long])).all()


@torch.no_grad()
def test_a_text_has_the_same_embedding_in_any_company(clip):
    alone = torch.cat([clip.encode_text([text]) for text in TEXTS])
    assert_close(clip.encode_text(TEXTS), alone)


# --- a state for each token -----------------------------------------------------------------------


def ids_of(clip: Clip, texts: list[str], length: int) -> Tensor:
    given = {"padding": "max_length", "truncation": True, "max_length": length}
    return torch.tensor(clip.tokenizer(texts, **given).input_ids)


@torch.no_grad()
def ends(clip: Clip, texts: list[str], length: int) -> Tensor:
    """The transformer's states at each text's end, brought to the joint space by open_clip's own
    projection; the texts truncated and padded by the tokenizer of transformers."""
    tokenizer, model = clip.tokenizer, clip.text_transformer(length)
    ids = ids_of(clip, texts, length)
    states = model(ids).last_hidden_state
    assert states.shape == (len(texts), length, model.config.hidden_size)
    at = [row.index(tokenizer.eos_token_id) for row in ids.tolist()]
    return states[torch.arange(len(texts)), at] @ clip.model.text_projection


@pytest.fixture(scope="module", params=[False, True], ids=["gelu", "quick_gelu"])
def deeper(clip, request) -> Clip:
    """Of two layers, with weights that are all random: open_clip starts biases at 0, scales at 1,
    so that some that were mixed up would not be seen."""
    config = copy.deepcopy(clip.settings)
    config["model_cfg"]["text_cfg"]["layers"] = 2
    config["model_cfg"]["quick_gelu"] = request.param
    known = {k: v for k, v in config["model_cfg"]["text_cfg"].items() if k != "hf_tokenizer_name"}
    vision = config["model_cfg"]["vision_cfg"]
    kind = {"embed_dim": clip.embedding_dim, "quick_gelu": request.param}
    model = open_clip.model.CLIP(vision_cfg=vision, text_cfg=known, **kind)
    for parameter in model.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return Clip(model, clip.tokenizer, config)


@torch.no_grad()
def test_the_text_transformers_states_against_open_clip(deeper):
    """At CLIP's own length: the embedding of every text, a truncated one too."""
    texts = [*TEXTS, "a red ball and " * 30]
    theirs = deeper.model.encode_text(ids_of(deeper, texts, 32))
    assert_close(ends(deeper, texts, 32), theirs, atol=1e-4, rtol=1e-4)
    unit = torch.nn.functional.normalize(theirs, dim=1)
    assert_close(deeper.encode_text(texts), unit, atol=1e-5, rtol=1e-5)
    assert torch.pdist(unit).min() > 1e-2


@torch.no_grad()
def test_a_longer_text_transformer_reads_short_texts_alike_and_repeats_its_last_place(deeper):
    embeddings = deeper.encode_text(TEXTS)
    longer = torch.nn.functional.normalize(ends(deeper, TEXTS, 77), dim=1)
    assert_close(longer, embeddings, atol=1e-4, rtol=1e-4)
    places = deeper.model.positional_embedding
    (table,) = (
        value
        for name, value in deeper.text_transformer(77).state_dict().items()
        if name.endswith("position_embedding.weight")
    )
    assert torch.equal(table[:32], places)
    for row in table[32:]:
        assert torch.equal(row, places[31])


def test_the_text_transformer_is_a_copy(deeper):
    before = {name: value.clone() for name, value in deeper.model.state_dict().items()}
    for parameter in deeper.text_transformer(32).parameters():
        torch.nn.init.zeros_(parameter)
    after = deeper.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# --- disk -----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_clip_survives_the_disk(clip, tmp_path, dtype):
    kept = copy.deepcopy(clip)
    kept.to(dtype).save_pretrained(tmp_path / "again")
    again = Clip.from_pretrained(tmp_path / "again")
    tolerance = {"atol": 2e-3, "rtol": 0} if dtype == torch.float16 else {"atol": 0, "rtol": 0}
    assert_close(again.encode_text(TEXTS), clip.encode_text(TEXTS), **tolerance)
    assert again.settings == clip.settings
    assert json.loads((tmp_path / "again" / CONFIG_NAME).read_text()) == clip.settings
    assert {p.suffix for p in (tmp_path / "again").iterdir()} <= {".json", ".safetensors", ".txt"}
    assert (tmp_path / "again" / WEIGHTS_NAME).is_file()


def test_a_folder_without_clip_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"{CONFIG_NAME} is missing; pass a complete model folder"
    ):
        Clip.from_pretrained(tmp_path)


# --- open_clip's own tokenizer --------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(clip) -> Clip:
    """As CLIPs are published: the tokenizer is open_clip's, of 49408 tokens, and no file."""
    config = copy.deepcopy(clip.settings)
    text = config["model_cfg"]["text_cfg"] | {"vocab_size": 49408, "context_length": 77}
    del text["hf_tokenizer_name"]
    config["model_cfg"]["text_cfg"] = text
    model = open_clip.model.CLIP(**config["model_cfg"])
    for parameter in model.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return Clip(model, SimpleTokenizer(context_length=77), config)


@torch.no_grad()
def test_a_published_clip_against_plain_open_clip(published, tmp_path):
    published.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG_NAME, WEIGHTS_NAME}
    again = Clip.from_pretrained(tmp_path)
    model = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    theirs = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
    assert_close(again.encode_text(TEXTS), theirs)
    assert torch.equal(again.encode_text(TEXTS), published.encode_text(TEXTS))


@torch.no_grad()
def test_the_states_of_a_published_clip_against_open_clip(published):
    ids, transformer = published.tokenizer(TEXTS), published.text_transformer(77)
    states = transformer(ids).last_hidden_state
    at = states[torch.arange(len(TEXTS)), ids.argmax(1)] @ published.model.text_projection
    assert_close(at, published.model.encode_text(ids), atol=1e-4, rtol=1e-4)
    pooled = transformer(ids).pooler_output  # which depends on the ids of the special tokens
    assert_close(pooled @ published.model.text_projection, at, atol=1e-5, rtol=1e-5)


# --- texts that are too long ----------------------------------------------------------------------

CHINESE = "红色的球在绿色的草地上旁边有一棵大树和一座房子还有许多白色的小花开在湖边的山下"


@torch.no_grad()
def test_what_is_truncated_is_what_has_no_effect(clip):
    short, long = "a red ball", "a red ball " * 30
    assert clip.truncated(short) == ""
    rest = clip.truncated(long)
    assert long.split() == long[: -len(rest) - 1].split() + rest.split()
    kept = " ".join(long.split()[: -len(rest.split())])
    assert clip.truncated(kept) == ""
    same, less, whole = clip.encode_text([f"{kept} " + rest[:5], kept.rsplit(" ", 1)[0], long])
    assert_close(same, whole)
    assert not torch.allclose(less, whole, atol=1e-4)


@torch.no_grad()
def test_of_a_chinese_text_the_beginning_is_read_and_the_end_is_named(clip):
    """Three tokens each, since the small tokenizer knows bytes alone: ten characters of forty."""
    assert len(CHINESE) == 39
    assert clip.truncated(CHINESE) == CHINESE[10:]
    assert clip.truncated(CHINESE[:10]) == ""
    texts = [CHINESE, CHINESE[:10] + CHINESE[:9:-1], CHINESE[:9] + CHINESE[10:]]
    whole, same, other = clip.encode_text(texts)
    assert_close(whole, same)
    assert not torch.allclose(whole, other, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("& " * 30, ""),
        ("&amp; " * 31, "&"),  # an entity is one sign
        ("a \n\t " * 31, "a"),
        ("a " * 30 + " " * 80_000, ""),
        ("a " * 32, "a a"),
    ],
)
def test_what_is_truncated_is_counted_in_the_text_that_is_read(clip, text, rest):
    assert clip.truncated(text) == rest


def test_what_a_published_clip_does_not_read(published):
    assert published.truncated("red " * 75) == ""
    assert published.truncated("Red " * 77) == "red red"
    rest, encode = published.truncated(CHINESE * 2), published.tokenizer.encode
    read = max(n for n in range(78) if len(encode((CHINESE * 2)[:n])) <= 75)
    assert rest in ((CHINESE * 2)[read:], (CHINESE * 2)[read + 1 :])  # one may be read in part


def test_a_long_text_is_tokenized_once(clip):
    """Not word by word, which took time in proportion to the square of its length."""
    calls = []

    def counted(*args, **settings):
        calls.append(args)
        return clip.tokenizer(*args, **settings)

    # the check of annotated types would refuse a function in the tokenizer's place
    assert getattr(truncated, "__wrapped__", truncated)(counted, "a red ball " * 2000, 32).endswith(
        "ball"
    )
    assert len(calls) == 1
