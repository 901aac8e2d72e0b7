# SPDX-License-Identifier: Apache-2.0
"""Named models and where their files are; nothing is loaded whose checksum is wrong."""

import hashlib
import re
from pathlib import Path

SUMS = "SHA256SUMS"
_HERE = Path(__file__).resolve().parent
# A checkout has data/ beside the package; an installed wheel carries a copy inside it.
_DATA = (_HERE.parent / "data", _HERE / "_data")
_POCKETS = tuple(place / "pocket" for place in _DATA)


def shipped(name: str) -> Path:
    """A file or folder of data/.

    Raises:
        FileNotFoundError: it is missing.
    """
    for place in _DATA:
        if (place / name).exists():
            return place / name
    raise FileNotFoundError(f"{_DATA[0] / name} is missing: run `git checkout -- data`")


def folder(model: str = "pocket", part: str = "") -> Path:
    """The folder of a model, or of one of its parts; the part's files are checked.

    Args:
        model: "pocket", the shipped one; a name under ./models or the checkout's models/ (a
            notebook runs elsewhere); or a path. All have the same layout: `models/sd15` is the
            classroom's, with Stable Diffusion 1.5 in `text-to-image` and OpenCLIP ViT-L/14 in
            `spatext/clip`. The folder of a single pipeline, as `train` writes it, is its own part.
        part: "text-to-image", "spatext", "spatext/clip", "reco", "judge" ...; "" for the whole.

    Raises:
        FileNotFoundError: where the model or the part is missing.
        ValueError: naming the file, for one whose checksum is wrong.
    """
    places = _POCKETS
    if model != "pocket":
        places = (Path("models", model), _HERE.parent / "models" / model, Path(model))
    place = next((place for place in places if place.is_dir()), None)
    if place is None:
        raise FileNotFoundError(
            f"model is {model!r}; pass 'pocket' or a model folder ({places[0]} does not exist)"
        )
    if (place / "model_index.json").is_file() and "/" not in part:
        part = ""
    if not (place / part).is_dir():
        raise FileNotFoundError(f"{place} has no folder {part!r}")
    names = Path(part).parts
    for k in range(len(names) + 1):  # the whole may be sealed, and a part that `train` wrote
        if problems := verify(place.joinpath(*names[:k]), "/".join(names[k:])):
            raise ValueError("; ".join(problems))
    return place / part


def verify(place: Path | None = None, part: str = "") -> list[str]:
    """What is wrong with a model's files, one sentence each; empty if all are as they were sealed.

    Args:
        place: the model's folder; the shipped one by default. A folder without SHA256SUMS has
            nothing to check against.
        part: check the files of this part only.
    """
    place = place or next((pocket for pocket in _POCKETS if pocket.is_dir()), _POCKETS[0])
    if not (place / SUMS).is_file():
        return []
    problems, lines = [], (place / SUMS).read_text(errors="replace").splitlines()
    if not lines:
        return [f"{place / SUMS} is empty: {_remedy(place)}"]
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch(r"[0-9a-f]{64}  \S.*", line):
            return [f"{place / SUMS} is damaged (line {number}: {line!r:.60}): {_remedy(place)}"]
        want, name = line[:64], line[66:]
        if part and not name.startswith(f"{part}/"):
            continue
        if not (place / name).is_file():
            problems.append(f"{place / name} is missing: {_remedy(place)}")
        elif _sha256(place / name) != want:
            problems.append(f"{place / name} is damaged: {_remedy(place)}")
    return problems


def seal(place: Path) -> None:
    """Writes SHA256SUMS over all files of a model folder, in `sha256sum`'s own format."""
    names = sorted(
        path.relative_to(place).as_posix()
        for path in place.rglob("*")
        if path.is_file() and path.name != SUMS
    )
    lines = [f"{_sha256(place / name)}  {name}\n" for name in names]
    (place / SUMS).write_text("".join(lines))


def _remedy(place: Path) -> str:
    """How to get a model's files back, which depends on how they came here."""
    if place == _POCKETS[0]:
        return "run `git checkout -- data/pocket`"
    if place == _POCKETS[1]:
        return "run `pip install --force-reinstall --no-deps spatext_lab`"
    return f"copy it anew from where {place.name} came from, or train it again"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
