# SPDX-License-Identifier: Apache-2.0
"""The pocket world's small grammar: free-form texts for an object, a backdrop and a scene."""

import re
from random import Random

KIND_WORDS = {
    "ball": ("ball", "sphere"),
    "box": ("box", "crate"),
    "star": ("star",),
    "heart": ("heart",),
    "tree": ("tree",),
    "house": ("house", "cottage"),
    "fish": ("fish",),
    "boat": ("boat", "sailboat"),
    "mushroom": ("mushroom", "toadstool"),
    "cup": ("cup", "mug"),
    "flower": ("flower", "blossom"),
    "moon": ("moon", "crescent moon"),
}
COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "royal blue"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "white": ("white", "snow white"),
}
PATTERN_WORDS = {"striped": ("striped", "stripy"), "dotted": ("dotted", "spotted")}
PATTERN_NOUNS = {"striped": "stripes", "dotted": "dots"}
STUFF_WORDS = {
    "noon sky": ("a clear blue sky", "the blue sky at noon", "light blue sky"),
    "grass": ("green grass", "a grassy meadow", "the meadow"),
    "sea": ("a calm turquoise sea", "the sea", "sea water"),
    "sand": ("a sandy beach", "warm sand", "the sand"),
    "night sky": ("a starry night sky", "the dark sky full of stars", "night sky with stars"),
    "dark hills": ("dark hills", "hills at night", "the hills in the dark"),
    "grey sky": ("a pale grey sky", "a cloudy winter sky", "grey sky"),
    "snow": ("fresh snow", "a snowy field", "the snow"),
    "sunset sky": ("an orange sunset sky", "the sky at sunset", "a glowing evening sky"),
    "dunes": ("desert dunes", "brown dunes", "the dunes of a desert"),
    "brick wall": ("a brick wall", "the wall of red bricks", "bricks"),
    "pavement": ("grey pavement", "the pavement", "a paved street"),
}
PLACE_WORDS = {
    "meadow": ("in a meadow at noon", "on green grass under a blue sky"),
    "beach": ("at the beach", "on the sand by the sea"),
    "night": ("on a starry night", "under a dark sky with stars"),
    "winter": ("in the snow", "on a snowy field under a grey sky"),
    "desert": ("in the desert at sunset", "on the dunes in the evening"),
    "street": ("in front of a brick wall", "on the pavement by a brick wall"),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_VOWEL = re.compile(r"(?!eu|one\b|uni(?!n|m)|us[ae]|ut[ei]|ura|uri)[aeiou]|hour|honest|heir", re.I)
Look = tuple[str, str, str]  # kind, colour, pattern


def article(words: str) -> str:
    """The words with "a" or "an" before them, by their sound: "an hour", "a unicycle"."""
    return f"{'an' if _VOWEL.match(words) else 'a'} {words}"


def _plural(noun: str) -> str:
    if noun.endswith("fish"):
        return noun
    return noun + ("es" if noun.endswith(("x", "s")) else "s")


def noun(rng: Random, kind: str, plural: bool = False) -> str:
    """A word for a kind of object."""
    word = rng.choice(KIND_WORDS[kind])
    return _plural(word) if plural else word


def _phrase(rng: Random, look: Look, *, plural: bool = False, detail: int = 2) -> str:
    """Noun phrase without article; detail 0: kind, 1: colour and kind, 2: pattern too."""
    kind, colour, pattern = look
    word = noun(rng, kind, plural)
    if detail == 0:
        return word
    hue = rng.choice(COLOUR_WORDS[colour])
    if detail == 1 or (pattern == "plain" and rng.random() < 0.8):
        return f"{hue} {word}"
    if pattern == "plain":
        return f"plain {hue} {word}"
    adjective = rng.choice(PATTERN_WORDS[pattern])
    forms = (
        f"{hue} {adjective} {word}",
        f"{adjective} {hue} {word}",
        f"{hue} {word} with {PATTERN_NOUNS[pattern]}",
    )
    return rng.choice(forms)


def thing_text(rng: Random, look: Look) -> str:
    """A free-form text for one object, for example "a fish with red stripes"."""
    kind, colour, pattern = look
    if pattern != "plain" and rng.random() < 0.15:
        word, hue = noun(rng, kind), rng.choice(COLOUR_WORDS[colour])
        return f"{article(word)} that is {hue} and {rng.choice(PATTERN_WORDS[pattern])}"
    phrase = _phrase(rng, look)
    return phrase if rng.random() < 0.25 else article(phrase)


def stuff_text(rng: Random, name: str) -> str:
    """A text for one backdrop segment, for example "a starry night sky"."""
    return rng.choice(STUFF_WORDS[name])


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _counted(rng: Random, looks: list[Look], detail: int) -> str:
    """Equal objects become a number: "three red stars and a boat"."""
    keys = [look[: 1 + detail] for look in looks]
    parts = []
    for key in dict.fromkeys(keys):
        look, n = looks[keys.index(key)], keys.count(key)
        phrase = _phrase(rng, look, plural=n > 1, detail=detail)
        parts.append(article(phrase) if n == 1 else f"{NUMBERS[n]} {phrase}")
    return _listed(parts)


def _relation(rng: Random, looks: list[Look], centres: list[tuple[float, float]]) -> str:
    """The clearest relation of two objects, "a red star left of a boat"; else their counts."""
    a, b = rng.sample(range(len(looks)), 2)
    dx, dy = (centres[b][i] - centres[a][i] for i in (0, 1))
    if max(abs(dx), abs(dy)) < 12 or looks[a][:2] == looks[b][:2]:
        return _counted(rng, looks, 1)
    if abs(dx) > abs(dy):
        word = rng.choice(
            ("left of", "to the left of") if dx > 0 else ("right of", "to the right of")
        )
    else:
        word = rng.choice(("above", "over")) if dy > 0 else rng.choice(("below", "under"))
    first, second = (article(_phrase(rng, looks[i], detail=1)) for i in (a, b))
    return f"{first} {word} {second}"


def captions(
    rng: Random, backdrop: str, looks: list[Look], centres: list[tuple[float, float]]
) -> tuple[str, ...]:
    """Five captions in random order: kinds, colours, everything, a relation, the backdrop first."""
    places = [rng.choice(PLACE_WORDS[backdrop]) for _ in range(5)]
    relation = _relation(rng, looks, centres) if len(looks) > 1 else _counted(rng, looks, 2)
    texts = [
        f"{_counted(rng, looks, 0)} {places[0]}",
        f"{_counted(rng, looks, 1)} {places[1]}",
        f"{_counted(rng, looks, 2)} {places[2]}",
        f"{relation} {places[3]}",
        f"{places[4]}, {_counted(rng, looks, 2)}",
    ]
    rng.shuffle(texts)
    return tuple(texts)
