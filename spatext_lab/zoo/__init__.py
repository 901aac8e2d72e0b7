# SPDX-License-Identifier: Apache-2.0
"""Named models: where their folders are, and whether every file is as it was sealed."""

import hashlib
import re
from functools import cache
from pathlib import Path

from spatext_lab.zoo.checks import CODE_KEYS, check_files, check_settings, named, read_json
from spatext_lab.zoo.families import INDEX, refuse_other_families
from spatext_lab.zoo.known import MODELS

__all__ = [
    *("CODE_KEYS", "INDEX", "SUMS", "check_files", "check_settings", "folder", "named"),
    *("places", "read_json", "refuse_other_families", "seal", "shipped", "verify"),
]
SUMS = "SHA256SUMS"
LARGE = 10**8  # bytes of a file that is not read again and again for its checksum
_HERE = Path(__file__).resolve().parents[1]  # the package
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
            classroom's (`spatext-lab models fetch sd15`), with Stable Diffusion 1.5 in
            `text-to-image` and OpenCLIP ViT-L/14 in `clip`. The folder of a single pipeline, as
            `train` writes it, is its own part.
        part: "text-to-image", "spatext", "spatext/clip", "reco", "judge" ...; "" for the whole.
            "spatext/clip" is `clip` where there is such a folder, whatever lies in `spatext` by
            now, since a base has its CLIP before it has a SpaText.

    Raises:
        FileNotFoundError: where the model or the part is missing.
        ValueError: for a part outside of the model's folder, for a model of another family or a
            single-file checkpoint, and naming the file, for one whose checksum is wrong.
    """
    if not isinstance(model, str | Path):
        raise ValueError(f"model is {model!r:.80}; pass 'pocket', or a model folder")
    if not isinstance(part, str) or ".." in Path(part).parts or Path(part).is_absolute():
        raise ValueError(f"part is {part!r:.80}; pass a folder within the model, such as 'reco'")
    candidates = places(model)
    place = next((place for place in candidates if place.is_dir()), None)
    if place is None:
        refuse_other_families(Path(model))
        raise FileNotFoundError(
            f"model is {model!r}; pass 'pocket' or a model folder ({candidates[0]} does not exist)"
            + _to_get(model, "")
        )
    if (place / INDEX).is_file() and "/" not in part:
        part = ""
    if "/" in part and (place / Path(part).name).is_dir():
        part = Path(part).name
    if not (place / part).is_dir():
        refuse_other_families(place)
        raise FileNotFoundError(f"{place} has no folder {part!r}{_to_get(model, part)}")
    names = Path(part).parts
    for k in range(len(names) + 1):  # the whole may be sealed, and a part that `train` wrote
        if problems := verify(place.joinpath(*names[:k]), "/".join(names[k:])):
            raise ValueError("; ".join(problems))
    return place / part


def places(model: str | Path) -> tuple[Path, ...]:
    """Where a model is looked for, in this order: see `folder`."""
    if model == "pocket":
        return _POCKETS
    found = (Path("models", model), _HERE.parent / "models" / model, Path(model))
    return found[2:] if ".." in Path(model).parts else found  # a path, not a name


def verify(place: Path | None = None, part: str = "") -> list[str]:
    """What is wrong with a model's files, one sentence each; empty if all match their checksums.

    Args:
        place: the model's folder; the shipped one by default. A folder without SHA256SUMS has
            nothing to check against.
        part: check the files of this part only.
    """
    place = place or next((pocket for pocket in _POCKETS if pocket.is_dir()), _POCKETS[0])
    if not (place / SUMS).is_file():
        return []
    text = (place / SUMS).read_text(errors="replace")
    if not text:
        return [f"{place / SUMS} is empty: {_remedy(place)}"]
    problems, lines = [], text.splitlines(keepends=True)  # the last is cut off without its end
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch(r"[0-9a-f]{64}  \S.*\n", line):
            return [f"{place / SUMS} is damaged (line {number}: {line!r:.60}): {_remedy(place)}"]
        want, name = line[:64], line[66:-1]
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


def _to_get(model: str | Path, part: str) -> str:
    """The command that fetches a part, if one does; results of trainings are fetched by none."""
    known = [source.part for source in MODELS[model].sources] if model in MODELS else []
    able = known and (not part or Path(part).name in known)
    return f"; to get it: spatext-lab models fetch {model}" if able else ""


def _remedy(place: Path) -> str:
    """How to get a model's files back, which depends on how they came here."""
    if place == _POCKETS[0]:
        return "run `git checkout -- data/pocket`"
    if place == _POCKETS[1]:
        return "run `pip install --force-reinstall --no-deps spatext_lab`"
    return f"copy it anew from where {place.name} came from, or train it again"


def _sha256(path: Path) -> str:
    stat = path.stat()
    if stat.st_size < LARGE:
        return _digest(path)
    return _remembered(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _remembered(path: Path, size: int, modified: int) -> str:
    """The checksum of a large file, computed once in a process as long as it is not written."""
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
