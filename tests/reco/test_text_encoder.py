# SPDX-License-Identifier: Apache-2.0
"""The grown text encoder against the one that it grew from, and its new rows against the old."""

import copy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings

from spatext_lab.reco.text_encoder import INITS, grow
from spatext_lab.text_to_image.tokenizer import new_tokenizer

BINS, LENGTH, WIDTH = 32, 154, 16
TEXTS = ["a red ball and a tree", "", "crème! " * 60]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return new_tokenizer(merges=200)


@pytest.fixture
def old(tokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = CLIPTextModel(config).eval()
    torch.nn.init.normal_(model.get_input_embeddings().weight, mean=0.5, std=2.0)
    return model


def embeddings(model: CLIPTextModel) -> CLIPTextEmbeddings:
    (found,) = (m for m in model.modules() if isinstance(m, CLIPTextEmbeddings))
    return found


def words(model: CLIPTextModel) -> Tensor:
    return model.get_input_embeddings().weight.detach()


def places(model: CLIPTextModel) -> Tensor:
    return embeddings(model).position_embedding.weight.detach()


@torch.no_grad()
def states(model: CLIPTextModel, tokenizer: CLIPTokenizer, length: int) -> Tensor:
    ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length)
    return model(torch.tensor(ids.input_ids)).last_hidden_state


def new_rows(old: CLIPTextModel, tokenizer, bins: int, init: str, seed: int = 0) -> Tensor:
    return words(grow(old, tokenizer, bins, 77, init, seed)[0])[len(tokenizer) :]


# --- what stays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("init", INITS)
def test_all_old_weights_are_the_same_to_the_last_bit(old, tokenizer, init):
    new, _ = grow(old, tokenizer, BINS, LENGTH, init)
    before, after = old.state_dict(), new.state_dict()
    assert set(before) == set(after)
    grown = set()
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)], value), name
        if after[name].shape != value.shape:
            grown.add(tuple(after[name].shape))
    assert grown == {(len(tokenizer) + BINS, WIDTH), (LENGTH, WIDTH)}


def test_an_old_prompt_is_read_as_before(old, tokenizer):
    """Up to the old length to the last bit, and further on nothing reaches back."""
    new, longer = grow(old, tokenizer, BINS, LENGTH)
    want = states(old, tokenizer, 77)
    assert torch.equal(states(new, longer, 77), want)
    short = [k for k, text in enumerate(TEXTS) if len(text) < 77]
    assert_close(states(new, longer, LENGTH)[short, :77], want[short], atol=1e-5, rtol=1e-5)


def test_the_arguments_stay_as_they_were(old, tokenizer):
    before = {name: value.clone() for name, value in old.state_dict().items()}
    new, longer = grow(old, tokenizer, BINS, LENGTH)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1)
    longer.add_tokens(["<cat-toy>"])
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())
    assert (old.config.vocab_size, old.config.max_position_embeddings) == (len(tokenizer), 77)
    assert (len(tokenizer), tokenizer.model_max_length) == (512 + 200 + 2, 77)
    assert not tokenizer.get_added_vocab().keys() & {"<bin000>", "<cat-toy>"}
    assert embeddings(old).position_ids.shape == (1, 77)


# --- what is new ----------------------------------------------------------------------------------


def test_the_last_position_is_repeated(old, tokenizer):
    grown = places(grow(old, tokenizer, BINS, LENGTH)[0])
    assert grown.shape == (LENGTH, WIDTH)
    for row in grown[77:]:
        assert torch.equal(row, places(old)[76])


def test_the_new_words_are_the_bins_in_their_order(old, tokenizer):
    new, longer = grow(old, tokenizer, BINS, LENGTH)
    first = len(tokenizer)
    ids = longer(" ".join(f"<bin{n:03d}>" for n in range(BINS)), add_special_tokens=False)
    assert ids.input_ids == list(range(first, first + BINS))
    assert longer.model_max_length == LENGTH
    assert (new.config.vocab_size, new.config.max_position_embeddings) == (first + BINS, LENGTH)
    assert longer("a red ball").input_ids == tokenizer("a red ball").input_ids


def test_without_bins_it_only_reads_more(old, tokenizer):
    new, longer = grow(old, tokenizer, 0, LENGTH)
    assert torch.equal(words(new), words(old))
    assert len(longer) == len(tokenizer)
    assert states(new, longer, LENGTH).shape == (3, LENGTH, WIDTH)


def test_everything_can_be_trained(old, tokenizer):
    """Every bin, every position and every layer gets a gradient."""
    new, longer = grow(old, tokenizer, BINS, LENGTH)
    bins = torch.arange(len(tokenizer), len(longer))
    ids = torch.cat([bins, torch.full((LENGTH - BINS,), longer.eos_token_id)])
    new(ids[None]).last_hidden_state.square().sum().backward()
    for name, parameter in new.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert (new.get_input_embeddings().weight.grad[bins].abs().sum(1) > 0).all()
    assert (embeddings(new).position_embedding.weight.grad.abs().sum(1) > 0).all()


def test_it_survives_the_disk(old, tokenizer, tmp_path):
    new, longer = grow(old, tokenizer, BINS, LENGTH)
    new.save_pretrained(tmp_path / "text_encoder")
    longer.save_pretrained(tmp_path / "tokenizer")
    again = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()
    reader = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    prompt = "a ball<|endoftext|><bin003><bin031>"
    assert reader(prompt).input_ids == longer(prompt).input_ids
    assert reader.model_max_length == LENGTH
    assert torch.equal(states(again, reader, LENGTH), states(new.eval(), longer, LENGTH))
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}


# --- how the new rows begin -----------------------------------------------------------------------


@pytest.mark.parametrize("init", INITS)
def test_a_seed_gives_one_set_of_rows(old, tokenizer, init):
    one, two, other = (new_rows(old, tokenizer, BINS, init, seed) for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("init", INITS)
def test_no_two_bins_begin_as_one(old, tokenizer, init):
    rows = new_rows(old, tokenizer, 128, init)
    assert torch.isfinite(rows).all()
    assert torch.pdist(rows).min() > 1e-3


def test_normal_rows_are_small(old, tokenizer):
    rows = new_rows(old, tokenizer, 4000, "normal")
    assert rows.mean().item() == pytest.approx(0, abs=1e-3)
    assert_close(rows.std(0), torch.full((WIDTH,), 0.02), atol=0, rtol=0.06)


def correlated(old: CLIPTextModel) -> Tensor:
    """Old rows whose numbers hang together, so that the covariance is more than its diagonal."""
    with torch.no_grad():
        weight = old.get_input_embeddings().weight
        weight.copy_(weight @ torch.randn(WIDTH, WIDTH) + torch.randn(WIDTH))
    return words(old)


def test_mean_rows_have_the_old_rows_mean_and_covariance(old, tokenizer):
    rows, new = correlated(old), new_rows(old, tokenizer, 20_000, "mean")
    scale = rows.std(0)
    assert_close((new.mean(0) - rows.mean(0)) / scale, torch.zeros(WIDTH), atol=0.04, rtol=0)
    correlation = torch.cov(new.T) / scale / scale[:, None]
    assert_close(correlation, torch.corrcoef(rows.T), atol=0.05, rtol=0)


def test_mean_rows_against_transformers_own(old, tokenizer):
    """One Gaussian but for its width: theirs has 1e-9 of the covariance."""
    rows, ours = correlated(old), new_rows(old, tokenizer, 20_000, "mean")
    model = copy.deepcopy(old)
    model.resize_token_embeddings(len(rows) + 20_000, mean_resizing=True)
    theirs, scale = words(model)[len(rows) :], rows.std(0)
    assert_close(theirs.mean(0) / scale, rows.mean(0) / scale, atol=1e-5, rtol=0)
    wide, narrow = (torch.cov(new.T) / scale / scale[:, None] for new in (ours, theirs))
    assert_close(narrow * 1e9, wide, atol=0.06, rtol=0)


@pytest.mark.parametrize(
    ("init", "bins", "least", "most"),
    [
        ("smooth", 64, 0.001, 0.05),
        ("smooth", 1000, 1e-6, 0.0005),
        ("mean", 64, 0.7, 1.4),
        ("normal", 64, 0.7, 1.4),
    ],
)
def test_smooth_rows_alone_are_close_to_their_neighbours(old, tokenizer, init, bins, least, most):
    """Squared distance of bins beside each other, as a part of that of bins half an image apart;
    with more bins, neighbours are closer."""
    rows = new_rows(old, tokenizer, bins, init)
    beside = (rows[1:] - rows[:-1]).square().sum(1).mean()
    apart = (rows[: bins // 2] - rows[bins // 2 :]).square().sum(1).mean()
    assert least < beside / apart < most


def test_smooth_rows_lie_where_the_old_rows_lie(old, tokenizer):
    """Over many seeds: about their mean, and spread over the bins as wide as they are."""
    many = torch.stack([new_rows(old, tokenizer, 64, "smooth", seed) for seed in range(60)])
    rows, wide = words(old), words(old).std(0)
    assert_close((many.mean((0, 1)) - rows.mean(0)) / wide, torch.zeros(WIDTH), atol=0.1, rtol=0)
    variance = many.var(1).mean(0) / wide**2
    assert variance.mean().item() == pytest.approx(1, abs=0.15)
    assert 0.5 < variance.min() < variance.max() < 2


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins": 1}, "bins is 1; pass at least 2"),
        ({"bins": -3}, "bins is -3"),
        ({"length": 76}, "length is 76; the encoder reads 77 tokens already"),
        ({"init": "zero"}, "init is 'zero'; there are mean, normal, smooth"),
    ],
)
def test_what_cannot_be_grown(old, tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        grow(old, tokenizer, **{"bins": BINS, "length": LENGTH, **settings})


def test_nothing_grows_twice(old, tokenizer):
    grown = grow(old, tokenizer, BINS, LENGTH)
    with pytest.raises(ValueError, match="32 bins already; start from a base without"):
        grow(*grown, BINS, LENGTH)
