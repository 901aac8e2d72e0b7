# SPDX-License-Identifier: Apache-2.0
"""Models of `transformers` from a folder, checked before they are used; nothing in it is run."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spatext_lab import zoo

FORMS = {
    "segmenter": "judge, or a segmenter's folder such as models/mask2former",
    "captioner": "a captioner's folder such as models/git",
}
LOCAL = {"trust_remote_code": False, "local_files_only": True}


def model_type(place: Path, what: str) -> str:
    """The type of the model in a folder, by its config.json; empty where that does not say.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: a file is damaged, is code, or names code or models from elsewhere.
    """
    if not (place / "config.json").is_file():
        raise FileNotFoundError(f"{place} has no config.json; pass a {what}'s folder")
    with _read_as(what, place):
        zoo.check_files(place)
        return str(zoo.read_json(place / "config.json").get("model_type", ""))


def from_folder(
    folder: str | Path, what: str, kind: Any, processor: Any, types: Collection[str] = ()
) -> tuple[Any, Any]:
    """A model, ready for use, and its processor.

    Args:
        folder: as transformers saves it; a name such as "git" is looked for in ./models too.
        what: that it should be, "segmenter" or "captioner".
        kind: the model's auto class of transformers.
        processor: the processor's auto class.
        types: of the models that can be used; all that `kind` can read if not given.

    Raises:
        FileNotFoundError: there is no such folder, or it has no config.json.
        ValueError: it holds another kind of model, code, or damaged files.
    """
    there = model_type(place := found(folder, what), what)
    with _read_as(what, place):
        if types and there not in types:
            wanted = " or ".join(types)
            raise ValueError(f"it holds a model of type {there!r}, and a {what} is {wanted}")
        model, info = kind.from_pretrained(
            place, use_safetensors=True, output_loading_info=True, **LOCAL
        )
        learned = {name for name, _ in model.named_parameters()}
        if missing := sorted(learned.intersection(info["missing_keys"])):
            raise ValueError(
                f"{len(missing)} weights are missing, such as {missing[0]}: the folder of another "
                f"model than {type(model).__name__}"
            )
        return model.eval(), processor.from_pretrained(place, **LOCAL)


@contextmanager
def _read_as(what: str, place: Path) -> Iterator[None]:
    """Whatever transformers raises for a damaged folder, as one error that names the folder."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{place} cannot be read as a {what}: {reason:.300}") from None


def found(folder: str | Path, what: str) -> Path:
    """The folder of this name, here or in ./models.

    Raises:
        FileNotFoundError: there is none.
    """
    for place in (Path(folder), Path("models", folder)):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{what} is {str(folder)!r}; pass {FORMS[what]}")
