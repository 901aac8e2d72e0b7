# SPDX-License-Identifier: Apache-2.0
"""Which of COCO's eight licences an image has, by the name and address that its file gives."""

import re

from msgspec import Struct

# By, By-SA, no known restrictions, US Government: the image may be shown, changed and sold.
FREE_LICENCES = (4, 5, 7, 8)
_CREATIVE_COMMONS = {"nc sa": 1, "nc": 2, "nc nd": 3, "": 4, "sa": 5, "nd": 6}
_OTHERS = {
    7: r"no known (copyright )?restrictions|flickr\.com/commons|public ?domain|\bcc-?0\b",
    8: r"united states government|u\.?s\.? government|usa\.gov",
}
_SHORT = {
    r"attribution": "by",
    r"non[- ]?commercial": "nc",
    r"share[- ]?alike": "sa",
    r"no[- ]?deriv\w*": "nd",
}


class Licence(Struct, frozen=True):
    """An image's licence."""

    number: int  # COCO's: 1 to 8; 0 for any other
    name: str
    url: str


def coco_number(name: str, url: str) -> int:
    """COCO's number (1 to 8) of a licence, 0 where it is none of them, or name and address differ.

    Files number their licences as they like: 1 is CC BY-NC-SA in COCO and CC BY elsewhere.
    """
    if re.search("all rights reserved", name, re.IGNORECASE):
        return 0
    found = {_number(name), _number(url)} - {None}
    return found.pop() if len(found) == 1 else 0


def _number(text: str) -> int | None:
    text = text.lower().replace("_", "-")
    for number, pattern in _OTHERS.items():
        if re.search(pattern, text):
            return number
    if not re.search(r"\bcc\b|creative ?commons|attribution|\Aby\b", text):
        return None
    for long, short in _SHORT.items():
        text = re.sub(long, short, text)
    terms = set(re.findall(r"\b(?:by|nc|nd|sa)\b", text))
    return _CREATIVE_COMMONS.get(" ".join(sorted(terms - {"by"}))) if "by" in terms else None
