# SPDX-License-Identifier: Apache-2.0
"""The pocket tokenizer: the first merges of CLIP's byte-pair encoding.

A prefix of the merge list is a valid tokenizer, so any text can be encoded; words that come late
in the list fall into a few more pieces. The merge list is CLIP's (OpenAI, MIT licence), read from
the file that open_clip ships.
"""

import gzip
from importlib.resources import files

from transformers import CLIPTokenizer

MERGES = 1500
# For photos: a caption of COCO has 15 tokens, where the first 1500 merges make 20 of it, and all
# 48 894 would make 14. More merges are more embeddings, which few photos cannot teach.
PHOTO_MERGES = 8000
START, END = "<|startoftext|>", "<|endoftext|>"


def _byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level encodings use, in CLIP's order."""
    own = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in own]
    return [chr(b) for b in own] + [chr(256 + i) for i in range(len(rest))]


def new_tokenizer(merges: int = MERGES, length: int = 77) -> CLIPTokenizer:
    """A `CLIPTokenizer` of 512 + merges + 2 tokens; pads and truncates to `length` tokens."""
    packed = files("open_clip").joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : 1 + merges]
    pairs = [tuple(line.split()) for line in lines]
    symbols = _byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), *("".join(p) for p in pairs), START, END]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=length)
