# SPDX-License-Identifier: Apache-2.0
"""Named models and where their files are; nothing is loaded whose checksum is wrong."""

import hashlib
from pathlib import Path

SUMS = "SHA256SUMS"
_HERE = Path(__file__).resolve().parent
# A checkout has data/ beside the package; an installed wheel carries a copy inside it.
_DATA = (_HERE.parent / "data", _HERE / "_data")
_POCKETS = tuple(place / "pocket" for place in _DATA)


def shipped(name: str) -> Path:
    """A file or folder of data/. Raises FileNotFoundError where it is not."""
    for place in _DATA:
        if (place / name).exists():
            return place / name
    raise FileNotFoundError(f"{_DATA[0] / name} is missing: run `git checkout -- data`")


def root(model: str = "pocket") -> Path:
    """The folder of a model: "pocket", a name under ./models or the checkout's models/ (a notebook
    runs elsewhere), or the path of a folder.

    All have the same layout; `models/sd15` is the classroom's: Stable Diffusion 1.5 in
    `text-to-image`, OpenCLIP ViT-L/14 in `spatext/clip`.
    Raises FileNotFoundError where there is no such folder.
    """
    own = (Path("models", model), _HERE.parent / "models" / model, Path(model))
    places = _POCKETS if model == "pocket" else own
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"model is {model!r}; give 'pocket' or a model folder ({places[0]} does not exist)"
    )


def folder(model: str, part: str) -> Path:
    """The folder of one part of a model ("text-to-image", "spatext", "judge"), checked.

    Raises FileNotFoundError where the part is missing, ValueError for a damaged file, by name.
    """
    place = root(model)
    if not (place / part).is_dir():
        raise FileNotFoundError(f"{place} has no folder {part!r}")
    problems = verify(place)
    if problems:
        raise ValueError("; ".join(problems))
    return place / part


def part(model: str, name: str) -> Path:
    """One pipeline's folder as `train` writes it, or its part of a whole model such as "pocket".

    Raises what `folder` raises.
    """
    return Path(model) if is_pipeline(model) else folder(model, name)


def is_pipeline(model: str) -> bool:
    """Whether this is the folder of one pipeline and not of a whole model."""
    return (Path(model) / "model_index.json").is_file()


def verify(place: Path | None = None) -> list[str]:
    """What is wrong with a model's files, one sentence each; empty if all are as they were shipped.

    A folder without SHA256SUMS (your own training, say) has nothing to check against.
    """
    place = place or root()
    if not (place / SUMS).is_file():
        return []
    problems = []
    for line in (place / SUMS).read_text().splitlines():
        want, _, name = line.partition("  ")
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
