# SPDX-License-Identifier: Apache-2.0
"""The tokenizer against a slow byte-pair encoding, and against CLIP's own."""

import open_clip
import pytest
from transformers import CLIPTokenizer

from spatext_lab.text_to_image import tokenizer

WORDS = (
    "a red striped fish with dots on the snow, two crimson mushrooms; 42 x 7 don't! crème 日本 🐟 "
    "the quick brown fox jumps over lazy dogs in meadows at noon"
)


def slow_bpe(word: str, merges: list[tuple[str, str]], letters: list[str]) -> list[str]:
    """Byte-pair encoding as it is defined: the merges in their order, each one everywhere."""
    pieces = [letters[byte] for byte in word.encode()]
    pieces[-1] += "</w>"
    for pair in merges:
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == pair:
                pieces[i : i + 2] = ["".join(pair)]
            i += 1
    return pieces


@pytest.fixture(scope="module")
def theirs() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


def merges_of(theirs, count: int) -> list[tuple[str, str]]:
    return [pair for pair, _ in sorted(theirs.bpe_ranks.items(), key=lambda item: item[1])][:count]


def test_words_are_split_by_the_first_merges(theirs):
    ours, merges = tokenizer.new_tokenizer(merges=1500), merges_of(theirs, 1500)
    letters = [theirs.byte_encoder[byte] for byte in range(256)]
    for word in theirs.pat.findall(WORDS.lower()):
        ids = ours(word, add_special_tokens=False).input_ids
        assert ours.convert_ids_to_tokens(ids) == slow_bpe(word, merges, letters), word


def test_words_whose_merges_are_all_kept_have_clips_own_ids(theirs):
    """The vocabulary is a prefix, so the number of such a word's only token is CLIP's."""
    ours, known = tokenizer.new_tokenizer(), 0
    for word in theirs.pat.findall(WORDS.lower()):
        want = theirs.encode(word)
        if max(want) < 512 + tokenizer.MERGES:
            assert ours(word, add_special_tokens=False).input_ids == want
            known += 1
    assert known > 15
    vocabulary = ours.get_vocab()
    for token, number in theirs.encoder.items():
        if number < 512 + tokenizer.MERGES:
            assert vocabulary[token] == number
    assert len(ours) == len(vocabulary) == 512 + tokenizer.MERGES + 2


def test_with_all_merges_it_is_clips_tokenizer(theirs):
    every = len(theirs.bpe_ranks)
    ours = tokenizer.new_tokenizer(merges=every)
    assert len(ours) == 49408
    assert ours(WORDS).input_ids == [49406, *theirs.encode(WORDS), 49407]


def test_any_text_comes_back():
    ours = tokenizer.new_tokenizer()
    for text in ("zxqj vwk", "crème brûlée", "日本", "🐟 and so on", "a red ball"):
        assert ours.decode(ours(text).input_ids, skip_special_tokens=True).strip() == text


def test_texts_are_padded_with_the_end_token_and_truncated_to_77(theirs):
    ours = tokenizer.new_tokenizer()
    ids = ours(["a ball", "ball " * 200], padding="max_length", truncation=True).input_ids
    assert [len(row) for row in ids] == [77, 77]
    end = len(ours) - 1
    assert ids[0][0] == ids[1][0] == end - 1
    assert ids[0].count(end) == 77 - 3
    assert ids[1][-1] == end


def test_a_tokenizer_survives_the_disk(tmp_path):
    ours = tokenizer.new_tokenizer(length=32)
    ours.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again(WORDS).input_ids == ours(WORDS).input_ids
    assert again.model_max_length == 32
