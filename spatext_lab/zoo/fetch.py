# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab models fetch`: a known model from the hub into ./models, whole and checked."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from spatext_lab import zoo
from spatext_lab.scene import files
from spatext_lab.zoo import hub
from spatext_lab.zoo.known import MODELS, Known, Source
from spatext_lab.zoo.state import CARD, whole

README = "README.md"


@dataclass(frozen=True)
class Piece:
    """A repository, and the folder that it becomes.

    Args:
        source: the repository.
        place: the folder.
        revision: the commit, branch or tag that is asked for; None for the newest.
    """

    source: Source
    place: Path
    revision: str | None

    @property
    def room(self) -> Path:
        """Where the files lie until all of them are there: a hidden folder beside `place`."""
        return self.place.with_name(f".{self.place.name}.fetch")


@dataclass(frozen=True)
class Order:
    """What is to be downloaded for a piece.

    Args:
        piece: the piece.
        found: its repository, as the hub lists it.
        wanted: the repository's files that are needed, by their name in the folder.
        missing: those of them that are not there yet.
    """

    piece: Piece
    found: hub.Repository
    wanted: dict[str, hub.File]
    missing: dict[str, hub.File]


def fetch(
    name: str,
    *,
    out: Path | None = None,
    accept: bool = False,
    endpoint: str | None = None,
    revision: Sequence[str] | None = None,
) -> Path:
    """Downloads a known model, if it is not there yet. A stopped download goes on where it was.

    The licences are shown, with the size, before anything is downloaded. Every file is checked
    against the hub's checksum; weights are safetensors, in half precision where the repository has
    them so, and nothing else than those, settings and tokenizers is taken.

    Args:
        name: a model in MODELS.
        out: the folder to write (./models/NAME).
        accept: the licences are read and accepted; without it, a terminal asks.
        endpoint: the hub's address or a mirror's, https://HOST (HF_ENDPOINT, or the hub).
        revision: a commit, branch or tag for each repository, in the order that is shown; the
            card's commits give a whole class the same weights (the newest ones).

    Returns:
        The model's folder.

    Raises:
        ValueError: an unknown model, a licence that was not accepted, or a folder that holds
            another revision.
        OSError: what `hub.repository` and `hub.download` raise, and where the disk is too small.
    """
    if name not in MODELS:
        raise ValueError(f"name is {name!r:.40}; there are {', '.join(MODELS)}")
    place = Path(out or Path("models", name))
    pieces = _pieces(MODELS[name], place, revision)
    if _left(pieces):  # else the folder may be one that only its owner can write
        with _alone(place):
            if todo := _left(pieces):  # else another process has just fetched it
                _fetch(MODELS[name], place, todo, hub.checked_endpoint(endpoint), accept)
    for piece in pieces:
        print(f"{piece.place}: there and whole")
    return place


def _fetch(known: Known, place: Path, todo: list[Piece], endpoint: str, accept: bool) -> None:
    print(_terms(known, todo))
    if not accept and not sys.stdin.isatty():
        raise ValueError("accept is not given: read the licences above, then pass --accept")
    orders = [_order(piece, endpoint) for piece in todo]
    _check_room(place, orders)
    if not accept and input("Accept the licences and download? Type yes: ").strip() != "yes":
        raise ValueError("accept is not given: nothing was downloaded")
    for order in orders:
        _download(order)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Waits until no other process fetches into the same folder."""
    new = not place.parent.is_dir()
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = place.with_name(f".{place.name}.lock")
    try:
        with WeakFileLock(lock):
            yield
    finally:
        lock.unlink(missing_ok=True)
        if new and not any(place.parent.iterdir()):
            place.parent.rmdir()


# --- before the download --------------------------------------------------------------------------


def _pieces(known: Known, place: Path, revision: Sequence[str] | None) -> list[Piece]:
    revisions = revision or [None] * len(known.sources)
    if len(revisions) != len(known.sources):
        names = ", ".join(source.repository for source in known.sources)
        raise ValueError(f"revision is {list(revisions)}; pass one for each of {names}")
    return [
        Piece(source, place / source.part, wanted)
        for source, wanted in zip(known.sources, revisions, strict=True)
    ]


def _left(pieces: list[Piece]) -> list[Piece]:
    return [piece for piece in pieces if not _is_whole(piece)]


def _is_whole(piece: Piece) -> bool:
    """Whether nothing is left to be done; raises ValueError for another revision.

    A folder without a card was put there by hand: it is used as it is, or refused.
    """
    if not (piece.place / CARD).is_file():
        lacking = [name for name in piece.source.needed if not (piece.place / name).is_file()]
        if lacking and piece.place.is_dir() and any(piece.place.iterdir()):
            raise ValueError(
                f"{piece.place} was not fetched, and has no {lacking[0]}: complete it, or move it "
                "away"
            )
        return not lacking
    card = zoo.read_json(piece.place / CARD)
    known = (card.get("commit"), card.get("revision"))
    if piece.revision is not None and piece.revision not in known:
        raise ValueError(
            f"{piece.place} is at revision {card.get('commit')}, and {piece.revision} is asked "
            "for: move it away, or leave the revision out"
        )
    return whole(piece.place) and not zoo.verify(piece.place)


def _terms(known: Known, pieces: Sequence[Piece]) -> str:
    """Title, repositories and licences, for people."""
    lines = [known.title]
    for piece in pieces:
        licence = piece.source.licence
        lines += [
            f"  {piece.source.repository} -> {piece.place}",
            f"    licence: {licence.name}, {licence.address}",
            f"    it forbids: {licence.forbids}",
        ]
    return "\n".join(lines)


def _order(piece: Piece, endpoint: str) -> Order:
    """Asks the hub what it has. A folder that is repaired keeps to the commit on its card."""
    revision, card = piece.revision, piece.place / CARD
    if revision is None and card.is_file():
        revision = zoo.read_json(card).get("commit")
    found = hub.repository(piece.source.repository, endpoint, revision)
    wanted = {
        name: file
        for name, file in found.files.items()
        if any(fnmatch(name, pattern) for pattern in piece.source.also)
    }
    for name in piece.source.needed:
        known = [other for other in piece.source.names(name) if other in found.files]
        if not known:
            raise OSError(_lacks(found, name))
        wanted[name] = found.files[known[0]]
    if unknown := [name for name, file in wanted.items() if not file.checksum]:
        raise OSError(f"{endpoint} lists no checksum of {unknown[0]}; pass another endpoint")
    missing = {
        name: file
        for name, file in wanted.items()
        if not (file.is_at(piece.place / name) or file.is_at(piece.room / "whole" / name))
    }
    return Order(piece, found, wanted, missing)


def _lacks(found: hub.Repository, name: str) -> str:
    """The message for a file that a repository lacks."""
    where = f"{found.endpoint}/{found.name}"
    pickled = [other for other in found.files if other.endswith((".bin", ".ckpt", ".pt"))]
    if not name.endswith(".safetensors") or not pickled:
        return f"{where} has no {name} at commit {found.commit[:12]}; pass another revision"
    return (
        f"{where} has its weights as pickles only ({pickled[0]}), and nothing is unpickled here: "
        "let the hub convert them (https://huggingface.co/spaces/safetensors/convert), then pass "
        "the revision of its pull request, refs/pr/NUMBER"
    )


def _check_room(place: Path, orders: Sequence[Order]) -> None:
    """Prints what is to be downloaded and the free space; raises OSError where it is too little."""
    left = 0
    for order in orders:
        parts = sum(part.stat().st_size for part in order.piece.room.rglob("*.part"))
        size = max(0, sum(file.size for file in order.missing.values()) - parts)
        left += size
        count = f"{len(order.missing)} of {len(order.wanted)} files"
        print(f"  {order.piece.source.repository}: {count}, {_bytes(size)} to download")
    above = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(above).free
    print(f"  {_bytes(free)} free in {above}", flush=True)
    if left > free:
        raise OSError(
            f"{above} has {_bytes(free)} free, and {_bytes(left)} are needed: free some space, or "
            "pass a folder on a larger disk as out"
        )


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


# --- the download ---------------------------------------------------------------------------------


def _download(order: Order) -> None:
    """Brings a piece to its place: a new folder at once, what a damaged one lacks one by one."""
    piece, ready = order.piece, order.piece.room / "whole"
    for name, file in order.missing.items():
        hub.download(order.found, file, ready / name)
    for path in [p for p in ready.rglob("*") if p.is_file()]:
        name = path.relative_to(ready).as_posix()
        if name not in order.wanted:  # of another commit
            path.unlink()
        elif (piece.place / CARD).is_file():
            (piece.place / name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(piece.place / name)
    if (piece.place / CARD).is_file():
        _write_card(order, piece.place)
    else:
        _write_card(order, ready)
        if piece.place.is_dir():  # an empty one
            piece.place.rmdir()
        ready.replace(piece.place)
    shutil.rmtree(piece.room, ignore_errors=True)


def _write_card(order: Order, place: Path) -> None:
    """Checks a folder as if it was to be loaded, writes its card, and seals it."""
    zoo.check_files(place, *order.wanted)
    source, found = order.piece.source, order.found
    facts = {
        "repository": source.repository,
        "endpoint": found.endpoint,
        "revision": order.piece.revision or "main",
        "commit": found.commit,
        "licence": asdict(source.licence),
        "files": {
            name: {"from": file.name, "size": file.size, "checksum": file.checksum}
            for name, file in sorted(order.wanted.items())
        },
    }
    files.write(place / CARD, json.dumps(facts, indent=2) + "\n")
    files.write(place / README, _readme(facts))
    zoo.seal(place)


def _readme(facts: dict) -> str:
    licence = facts["licence"]
    return (
        f"# {facts['repository']}\n\n"
        f"From {facts['endpoint']}/{facts['repository']}, commit `{facts['commit']}`.\n\n"
        f"Licence: {licence['name']}, {licence['address']}. It forbids: {licence['forbids']}.\n"
    )
