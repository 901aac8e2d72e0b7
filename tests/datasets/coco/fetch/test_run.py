# SPDX-License-Identifier: Apache-2.0
"""Fetching a subset of COCO from a real server, against what `read_coco` chooses from all of it."""

import csv
import errno
import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from spatext_lab.datasets.coco import read_coco
from spatext_lab.datasets.coco.fetch import Patience, TransferError, annotations, fetch_coco, many
from spatext_lab.datasets.coco.fetch.archives import INSTANCES_AND_CAPTIONS, Archive
from tests.datasets.coco.fetch import server as tricks
from tests.datasets.coco.fetch.conftest import COUNT, HEIGHT, WIDTH, name_of, photo, zipped
from tests.photos import MINI

QUICK = Patience(attempts=3, first=0.01, longest=0.02, silence=5.0)
ZIP = "/annotations/annotations_trainval2017.zip"
PANOPTIC_ZIP = "/annotations/panoptic_annotations_trainval2017.zip"
ALL = {"licences": None, "min_area": 0.0}  # every photo
CHOICES = [
    {},
    {"limit": 5},
    {"limit": 5, "seed": 3},
    {"licences": (5,), "limit": 3},
    {"categories": ("cat",), "min_area": 0.3},
    {"regions": (1, 1), "min_area": 0.0, "licences": None, "limit": 20},
    ALL,
]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "coco"


@pytest.fixture
def fetch(server, root):
    def run(**how):
        return fetch_coco(root, "val", mirror=server.url, patience=QUICK, **how)

    return run


def path_of(number: int) -> str:
    return f"/val2017/{name_of(number)}"


def photos_in(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "val2017").iterdir())


def names(subset) -> list[str]:
    return [item.file_name for item in subset.items]


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def facts(subset):
    return [(i.file_name, i.captions, i.regions, i.credit, i.licence) for i in subset.items]


def attributed(root: Path) -> list[str]:
    return [row["file_name"] for row in csv.DictReader((root / "ATTRIBUTION.csv").open())]


def rewritten(complete: Path, root: Path, url: str | None, **more: str) -> None:
    """All of COCO but the first photo, which has another address."""
    shutil.copytree(complete, root)
    path = root / "annotations" / "instances_val2017.json"
    whole = json.loads(path.read_text())
    whole["images"][0] |= {"coco_url": url, **more}
    path.write_text(json.dumps(whole))
    (root / path_of(1)[1:]).unlink()


# --- the subset -----------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_exactly_the_photos_that_read_coco_chooses(fetch, server, root, complete, choice):
    wanted = read_coco(complete, "val", **choice)
    report = fetch(**choice)
    assert 1 <= len(wanted.items) == report.fetched
    assert photos_in(root) == names(wanted) == names(report.subset)
    assert sorted(server.paths()) == sorted([ZIP, *(f"/val2017/{n}" for n in names(wanted))])
    assert facts(read_coco(root, "val", **choice)) == facts(wanted) == facts(report.subset)
    for item in wanted.items:
        assert (root / "val2017" / item.file_name).read_bytes() == item.path.read_bytes()
    assert report.bytes == sum(item.path.stat().st_size for item in wanted.items)
    assert report.failed == {}


def test_panoptic_segments_come_as_read_coco_reads_them(fetch, server, root, complete, published):
    choice = {"limit": 6, "min_area": 0.4}  # of a PNG's two segments, one or both
    report = fetch(**choice, panoptic=True)
    by_hand = root.parent / "by-hand"
    shutil.copytree(complete, by_hand)
    for name, body in _members(published[PANOPTIC_ZIP]):
        (by_hand / name).write_bytes(body)
    (by_hand / "annotations" / "panoptic_val2017").mkdir()
    for name, body in _members((by_hand / "annotations" / "panoptic_val2017.zip").read_bytes()):
        (by_hand / "annotations" / name).write_bytes(body)
    wanted = read_coco(by_hand, "val", **choice)
    assert facts(report.subset) == facts(wanted)
    assert {region.text for item in wanted.items for region in item.regions} == {"a dog", "grass"}
    assert photos_in(root) == names(wanted)
    pngs = list((root / "annotations" / "panoptic_val2017").iterdir())
    assert len(wanted.items) <= len(pngs) < COUNT  # those that were looked at, and no more
    server.asked.clear()
    assert facts(fetch(**choice).subset) == facts(wanted)  # they are there now, asked for or not
    assert server.asked == []
    fetch(limit=8, min_area=0.4)  # more PNGs, from the archive that is there
    assert all(path.startswith("/val2017/") for path in server.paths())


def _members(archive: bytes):
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return [(name, opened.read(name)) for name in opened.namelist()]


@pytest.mark.skipif(
    not (MINI / "annotations" / "panoptic_val2017").is_dir(),
    reason="no real COCO photos here: set SPATEXT_COCO_MINI to a COCO 2017 folder",
)
def test_real_photos_come_as_they_are(server, root):
    folder = MINI / "annotations"
    pngs = {path.name: path.read_bytes() for path in (folder / "panoptic_val2017").iterdir()}
    stuff = {"panoptic_val2017.json": (folder / "panoptic_val2017.json").read_bytes()}
    things = {f"{k}_val2017.json" for k in ("instances", "captions")}
    server.files = {f"/val2017/{p.name}": p.read_bytes() for p in (MINI / "val2017").iterdir()} | {
        ZIP: zipped({name: (folder / name).read_bytes() for name in things}),
        PANOPTIC_ZIP: zipped(stuff | {"panoptic_val2017.zip": zipped(pngs)}),
    }
    how = {"licences": None, "min_area": 0.01, "limit": 12}
    fetch_coco(root, "val", mirror=server.url, patience=QUICK, panoptic=True, **how)
    wanted = read_coco(MINI, "val", **how)
    assert facts(read_coco(root, "val", **how)) == facts(wanted)
    assert photos_in(root) == names(wanted)


def test_without_panoptic_that_archive_is_not_asked_for(fetch, server, root):
    fetch(limit=2)
    assert not any("panoptic" in path for path in server.paths())
    assert sorted(path.name for path in (root / "annotations").iterdir()) == [
        "captions_val2017.json",
        "instances_val2017.json",
    ]


def test_a_licence_that_is_not_wanted_is_never_fetched(fetch, server, root):
    records = json.loads(
        dict(_members(server.files[ZIP]))["annotations/instances_val2017.json"],
    )["images"]
    others = {f"/val2017/{r['file_name']}" for r in records if r["license"] not in (4, 5)}
    assert len(others) == COUNT // 3
    fetch(min_area=0.0)
    assert not others & set(server.paths())
    assert len(server.asked) == 1 + COUNT - len(others)


def test_a_larger_subset_asks_for_what_is_new(fetch, server):
    first = {f"/val2017/{name}" for name in names(fetch(limit=4).subset)}
    server.asked.clear()
    second = fetch(limit=9)
    assert second.fetched == 5
    assert set(server.paths()) == {f"/val2017/{name}" for name in names(second.subset)} - first


def test_a_photo_of_no_use_is_replaced_as_read_coco_does(fetch, server, root, complete):
    whole = root.parent / "whole"
    shutil.copytree(complete, whole)
    first = read_coco(complete, "val", limit=4).items[1]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    with Image.open(first.path) as image:
        image.save(whole / "val2017" / first.file_name, exif=exif)
    server.files[f"/val2017/{first.file_name}"] = (whole / "val2017" / first.file_name).read_bytes()
    wanted = read_coco(whole, "val", limit=4)
    assert names(wanted) != names(read_coco(complete, "val", limit=4))
    report = fetch(limit=4)
    assert facts(report.subset) == facts(wanted) == facts(read_coco(root, "val", limit=4))
    assert report.fetched == 5
    server.asked.clear()
    fetch(limit=4)
    assert server.asked == []


# --- what is there --------------------------------------------------------------------------------


def test_a_second_run_makes_no_request_and_changes_nothing(fetch, server, root):
    fetch(**ALL)
    before, server.asked[:] = content(root), []
    report = fetch(**ALL)
    assert (server.asked, report.fetched, report.bytes) == ([], 0, 0)
    assert content(root) == before
    assert f"photos: {COUNT} were there, 0 fetched (0 bytes), 0 failed" in report.text()


def test_in_a_folder_that_was_unpacked_by_hand_no_request_is_made(server, fetch, root, complete):
    shutil.copytree(complete, root)
    assert fetch(limit=5).fetched == 0
    assert server.asked == []
    assert len(attributed(root)) == 5


def test_in_a_folder_that_may_not_be_written_to_nothing_is_written(fetch, root, monkeypatch):
    fetch(limit=3)
    monkeypatch.setattr("os.access", lambda *_: False)
    (root / ".fetch.lock").unlink()
    fetch(limit=3)
    with pytest.raises(PermissionError, match=r"no permission to write to .*coco: choose"):
        fetch(limit=4)
    assert not (root / ".fetch.lock").exists()


@pytest.mark.parametrize("damage", ["cut off", "another size", "no image", "empty"])
def test_a_damaged_photo_is_fetched_anew(fetch, server, root, damage):
    names_before = names(fetch(limit=3).subset)
    path = root / "val2017" / names_before[0]
    good, server.asked[:] = path.read_bytes(), []
    bad = {"cut off": good[:-40], "another size": photo(1, 20, 30), "no image": b"?", "empty": b""}
    path.write_bytes(bad[damage])
    assert names(fetch(limit=3).subset) == names_before
    assert path.read_bytes() == good
    assert server.paths() == [f"/val2017/{path.name}"]


def test_the_archive_serves_the_other_split_too(fetch, server, root):
    fetch(limit=1)
    server.asked.clear()
    with pytest.raises(ValueError, match=r"lacks captions_train2017\.json"):
        fetch_coco(root, "train", mirror=server.url, patience=QUICK)
    assert server.asked == []
    assert (root / "annotations" / "instances_train2017.json").read_bytes() == b"{}"


def test_what_another_fetch_left_behind_goes(fetch, server, root):
    names_all = names(fetch(**ALL).subset)
    path = root / "val2017" / names_all[0]
    path.unlink()
    server.tricks[f"/val2017/{path.name}"] = [tricks.cut(100), *[tricks.cut(0)] * 5]
    assert len(fetch(**ALL).failed) == 1
    assert [p.name for p in root.rglob("*.part*")] == [
        f"{path.name}.part",
        f"{path.name}.part.json",
    ]
    fetch(licences=(5,))  # another choice, without this photo
    assert list(root.rglob("*.part*")) == []


# --- what goes wrong ------------------------------------------------------------------------------


def test_one_missing_photo_stops_no_other_and_is_fetched_when_it_is_there(fetch, server, root):
    gone = names(fetch(limit=6).subset)[0]
    shutil.rmtree(root)
    kept = server.files.pop(f"/val2017/{gone}")
    report = fetch(limit=6)
    url = f"{server.url}/val2017/{gone}"
    assert report.failed == {url: "404 Not Found"}
    assert report.fetched == 5
    assert len(photos_in(root)) == 5
    assert sorted(attributed(root)) == [f"val2017/{name}" for name in photos_in(root)]
    assert "1 failed" in report.text()
    assert f"1 x 404 Not Found\n      {url}" in report.text()
    server.files[f"/val2017/{gone}"] = kept
    server.asked.clear()
    assert names(fetch(limit=6).subset) == photos_in(root)
    assert server.paths() == [f"/val2017/{gone}"]


def test_all_faults_at_once_and_the_folder_is_as_it_should_be(fetch, server, root, published):
    server.chunk, server.delay = 1000, 0.002
    server.tricks = {
        ZIP: [tricks.cut(700), tricks.status(503), tricks.wrong_length(9), tricks.says(b"PK?")],
        path_of(1): [tricks.cut(50), tricks.cut(0)],
        path_of(2): [tricks.status(429, retry_after="0")],
        path_of(4): [tricks.wrong_length(-5)],
        path_of(5): [tricks.wrong_length(+5)],
        path_of(7): [tricks.says(photo(7, 8, 8)), tricks.says(b"GIF89a")],
        path_of(8): [tricks.status(500), tricks.cut(1)],
        path_of(10): [tricks.says(published[path_of(10)][:-2])],
    }
    fetch_coco(
        root, "val", mirror=server.url, patience=Patience(attempts=5, first=0.01), min_area=0.0
    )
    assert not any(server.tricks.values())
    for path in (root / "val2017").iterdir():
        assert path.read_bytes() == published[f"/val2017/{path.name}"]
    assert len(photos_in(root)) == COUNT * 2 // 3
    assert list(root.rglob("*.part*")) == []


@pytest.mark.parametrize(
    ("trick", "reason"),
    [
        (tricks.says(b"<html><title>Sign in</title>"), 'a web page "Sign in" came from'),
        (tricks.says(photo(1, HEIGHT, WIDTH)[:-1]), "image file is corrupt"),
        (tricks.says(photo(1, WIDTH, HEIGHT)), "image has another size than its annotation says"),
        (tricks.says(b"%PDF-1.4 words"), "image format is not supported"),
        (tricks.status(403), "403 Forbidden"),
        (tricks.status(429, retry_after="999"), "the server asks to wait for 999 s"),
    ],
)
def test_what_is_no_photo_is_named_and_not_kept(fetch, server, root, trick, reason):
    fetch(limit=1)
    (first,) = photos_in(root)
    (root / "val2017" / first).unlink()
    server.tricks[f"/val2017/{first}"] = [trick] * 9
    (why,) = fetch(limit=1).failed.values()
    assert reason in why
    assert photos_in(root) == []
    assert attributed(root) == []


def test_a_run_of_failures_ends_the_work(fetch, server, root, monkeypatch):
    monkeypatch.setattr(many, "HOPELESS", 5)
    for number in range(1, COUNT + 1):
        del server.files[path_of(number)]
    report = fetch(**ALL)
    assert len(report.failed) == COUNT
    reasons = list(report.failed.values())
    assert reasons.count("404 Not Found") == 5
    assert reasons.count(many.NOT_TRIED) == COUNT - 5
    assert len(server.asked) < 1 + 5 + 2 * many.AT_A_TIME


def test_failures_between_others_end_nothing(fetch, server, monkeypatch):
    monkeypatch.setattr(many, "HOPELESS", 2)
    monkeypatch.setattr(many, "AT_A_TIME", 1)  # so that they come in order
    for number in range(2, COUNT + 1, 4):
        del server.files[path_of(number)]
    report = fetch(**ALL)
    assert set(report.failed.values()) == {"404 Not Found"}
    assert (len(report.failed), report.fetched) == (COUNT // 4, COUNT - COUNT // 4)


def test_eight_at_a_time_over_eight_connections(fetch, server):
    server.chunk, server.delay = 500, 0.01
    fetch(**ALL)
    assert 5 <= server.most_at_once <= 8
    assert len(server.clients) <= 8  # connections are used again


@pytest.mark.parametrize("how", ["not a zip", "another zip", "flipped", "encrypted", "page", "404"])
def test_a_bad_archive_is_named(fetch, server, root, how):
    good = server.files[ZIP]
    at = good.index(b"instances_val2017.json") + 60
    flipped = good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :]
    table = good.index(b"PK\x01\x02")
    locked = good[: table + 8] + b"\x01\x00" + good[table + 10 :]
    bodies = {
        "not a zip": (b"words" * 99, TransferError, "no zip archive"),
        "another zip": (zipped({"x.txt": b"x"}), ValueError, "lacks instances_val2017.json"),
        "flipped": (flipped, ValueError, "is damaged"),
        "encrypted": (locked, ValueError, "is damaged .*encrypted"),
        "page": (b"<!doctype html><p>Hi", TransferError, "a web page came from 127.0.0.1"),
        "404": (None, TransferError, "404 Not Found"),
    }
    body, error, words = bodies[how]
    server.files[ZIP] = body
    if body is None:
        del server.files[ZIP]
    with pytest.raises(error, match=words):
        fetch(limit=1)
    assert not (root / "annotations" / "instances_val2017.json").exists()


def test_no_member_is_unpacked_to_a_place_of_its_own(fetch, server, root):
    assert b"../evil.txt" in server.files[ZIP]
    fetch(limit=1)
    assert not list(root.parent.rglob("*evil*"))


def test_coco_itself_is_asked_at_its_address_and_its_archive_is_compared(
    server, root, monkeypatch, published
):
    def official(sha256):
        monkeypatch.setattr(annotations, "OFFICIAL", server.url)
        archive = Archive(ZIP.rpartition("/")[2], sha256, INSTANCES_AND_CAPTIONS.members)
        monkeypatch.setattr(annotations.archives, "INSTANCES_AND_CAPTIONS", archive)
        return fetch_coco(root, "val", patience=Patience(attempts=1), licences=(1,))

    with pytest.raises(TransferError, match="not the archive that COCO published"):
        official("0" * 64)
    assert server.paths() == [ZIP]  # 241 MB are not fetched twice in vain
    assert list(root.rglob("*.zip*")) == []
    records = _members(published[ZIP])
    other = {
        n: c.replace(b"http://images.cocodataset.org", server.url.encode()) for n, c in records
    }
    server.files[ZIP] = body = zipped(other)
    report = official(hashlib.sha256(body).hexdigest())
    assert report.fetched == 6
    assert not any("not the one that COCO" in note for note in report.notes)


@pytest.mark.parametrize(
    "mirror",
    ["ftp://x.org", "x.org/coco", "http://", "file:///data", "https://x.org/?a=1", "http://a b/"],
)
def test_a_mirror_must_be_an_address(root, mirror):
    with pytest.raises(ValueError, match=r"mirror is .*http or https address"):
        fetch_coco(root, "val", mirror=mirror)
    assert not root.exists()


def test_a_mirror_may_lie_in_a_folder(server, root, published):
    server.files = {f"/pub/coco{path}": body for path, body in published.items()}
    fetch_coco(root, "val", mirror=f"{server.url}/pub/coco/", patience=QUICK, limit=1)
    assert len(photos_in(root)) == 1


@pytest.mark.parametrize("url", [None, "", "words", ".example.org/x.jpg", "http://x.org"])
def test_a_mirror_is_asked_and_nobody_else(server, root, complete, url):
    """Whatever an annotation file says."""
    rewritten(complete, root, url)
    assert fetch_coco(root, "val", mirror=server.url, patience=QUICK).failed == {}
    assert server.paths() == [path_of(1)]


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "http://[x/1.jpg",
        "ftp://images.cocodataset.org/1.jpg",
        "file:///etc/passwd",
        "words",
    ],
)
def test_a_photo_without_an_address_fails_and_is_not_asked_for(root, complete, url):
    rewritten(complete, root, url)
    report = fetch_coco(root, "val", patience=QUICK)
    assert list(report.failed) == [url or name_of(1)]
    assert "no http or https address" in report.text()


@pytest.mark.parametrize(
    "url",
    ["http://.../1.jpg", "http://x:y/1.jpg", "http://127.0.0.1:1/\ud800.jpg", "http://\0/1.jpg"],
)
def test_an_address_that_is_none_fails_alone(root, complete, url):
    rewritten(complete, root, url)
    (why,) = fetch_coco(root, "val", patience=QUICK).failed.values()
    assert why.startswith("not an address: ")


def test_broken_unicode_is_no_obstacle(root, complete, server):
    rewritten(complete, root, "http://x.org/val2017/1.jpg", flickr_url="http://\ud800")
    server.files["/val2017/1.jpg"] = server.files[path_of(1)]
    assert fetch_coco(root, "val", mirror=server.url, patience=QUICK).failed == {}
    assert r"jpg,http://\ud" in (root / "ATTRIBUTION.csv").read_text()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"split": "test"}, "split is 'test'"),
        ({"min_area": 2.0}, "min_area is 2"),
        ({"limit": 0}, "limit is 0"),
        ({"regions": (3, 1)}, "regions is"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_request(server, root, wrong, words):
    how = {"split": "val"} | wrong
    with pytest.raises(ValueError, match=words):
        fetch_coco(root, mirror=server.url, patience=QUICK, **how)
    assert server.asked == []
    assert not root.exists()


def test_space_is_looked_at_before_anything_is_fetched(fetch, server, root, monkeypatch):
    real = shutil.disk_usage(root.parent)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: real._replace(free=64 * 2**20 + 500))
    with pytest.raises(OSError, match=r"has 67 MB free, and 67 MB are needed \(annotations"):
        fetch(limit=1)
    assert not list(root.rglob("*.zip"))
    free = 64 * 2**20 + 20_000  # enough for the archive and its content
    monkeypatch.setattr("shutil.disk_usage", lambda folder: real._replace(free=free))
    with pytest.raises(OSError, match=r"are needed \(24 photos\): make room"):
        fetch(**ALL)
    assert set(server.paths()) == {ZIP}


def test_a_full_disk_stops_everything_and_says_so(fetch, server, root, monkeypatch):
    fetch(limit=1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("spatext_lab.datasets.coco.fetch.part.Part.finish", full)
    server.asked.clear()
    with pytest.raises(OSError, match="No space left") as caught:
        fetch(**ALL)
    assert caught.value.filename == str(root)
    assert photos_in(root) != [name_of(n) for n in range(1, COUNT + 1)]


def test_one_fetch_at_a_time_works_in_a_folder(fetch, root):
    fetch(limit=1)
    with (
        FileLock(root / ".fetch.lock"),
        pytest.raises(OSError, match="another fetch is at work in"),
    ):
        fetch_coco(root, "val", mirror="http://127.0.0.1:1", limit=2)
    assert fetch(limit=2).fetched == 1


def test_a_file_in_the_folders_place_is_refused(fetch, root):
    root.write_text("a file")
    with pytest.raises(OSError, match="is a file: pass the path of a folder"):
        fetch(limit=1)


# --- attribution ----------------------------------------------------------------------------------


def test_the_attribution_names_each_photo_that_is_there(fetch, root, complete):
    fetch(limit=3, seed=1)
    fetch(limit=5, licences=(5,))
    rows = list(csv.DictReader((root / "ATTRIBUTION.csv").open()))
    assert list(rows[0]) == ["file_name", "flickr_url", "licence", "licence_url", "coco_url"]
    assert [row["file_name"] for row in rows] == [f"val2017/{name}" for name in photos_in(root)]
    whole = json.loads((complete / "annotations" / "instances_val2017.json").read_text())
    licences = {each["id"]: each for each in whole["licenses"]}
    truth = {f"val2017/{each['file_name']}": each for each in whole["images"]}
    for row in rows:
        record = truth[row["file_name"]]
        licence = licences[record["license"]]
        assert row["flickr_url"] == record["flickr_url"]
        assert row["coco_url"] == record["coco_url"]
        assert (row["licence"], row["licence_url"]) == (licence["name"], licence["url"])


def test_a_file_of_another_kind_with_that_name_is_not_lost(fetch, root):
    root.mkdir()
    (root / "ATTRIBUTION.csv").write_text("photo,owner\n1.jpg,Ann\n")
    with pytest.raises(ValueError, match="has other columns than file_name, flickr_url"):
        fetch(limit=1)
    assert (root / "ATTRIBUTION.csv").read_text() == "photo,owner\n1.jpg,Ann\n"
