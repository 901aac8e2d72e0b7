# SPDX-License-Identifier: Apache-2.0
"""Category names as a caption would say them: "scissors", "an umbrella", "a wood floor"."""

import re
from functools import cache

from spatext_lab.datasets.pocket.texts import article

# COCO's panoptic and stuff names that are made for machines, and only those: a "wall-clock" or a
# "stuff-sack" of another file keeps its name.
_MATERIAL = re.compile(r"(wall|floor|ceiling)-(brick|concrete|marble|panel|stone|tile|wood)")
_SUFFIXED = re.compile(
    r"(door|mirror|desk)-stuff"
    r"|(building|ceiling|floor|food|furniture|ground|plant|sky|solid|structural|textile|wall|water"
    r"|window)-other(?:-merged)?"
    r"|(cabinet|ceiling|dirt|fence|grass|mountain|paper|pavement|rock|rug|table|tree)-merged"
    r"|(window-blind)"
)
_NO_ARTICLE = re.compile(
    r".*(?<![aisu])(?<!len)s|(.* )?(broccoli|dirt|food|fruit|grass|gravel|mud|sand|skis|snow|water)"
)


@cache
def region_text(category: str) -> str:
    """The text of a region of this category.

    Plurals and the names of materials take no article: "scissors", "grass".
    """
    name = category
    if found := _MATERIAL.fullmatch(category):
        name = f"{found[2]} {found[1]}"
    elif found := _SUFFIXED.fullmatch(category):
        name = next(filter(None, found.groups())).replace("-", " ")
    name = name.replace("_", " ")
    return name if _NO_ARTICLE.fullmatch(name) else article(name)
