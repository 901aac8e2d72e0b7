# SPDX-License-Identifier: Apache-2.0
"""`models fetch` against a hub on 127.0.0.1: whole or not there, whatever the network does."""

import builtins
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import huggingface_hub.file_download
import pytest
from diffusers import StableDiffusionPipeline
from huggingface_hub import constants
from safetensors.torch import load, load_file

from spatext_lab import zoo
from spatext_lab.cli import parser as cli
from spatext_lab.clip import Clip
from spatext_lab.reco.pipeline import ReCoPipeline
from spatext_lab.text_to_image.pipeline import TextToImagePipeline
from spatext_lab.zoo import hub as hubs
from spatext_lab.zoo.fetch import fetch
from spatext_lab.zoo.state import state
from tests.tiny import SCENE
from tests.zoo.local_hub import (
    OPEN_CLIP,
    RECO,
    SD,
    Repository,
    open_clip,
    read,
    serving,
    stable_diffusion,
)

ROOT = Path(__file__).parents[2]
UNET = "unet/diffusion_pytorch_model.safetensors"
HALF = "unet/diffusion_pytorch_model.fp16.safetensors"  # the hub's name of what becomes it
PARTS = ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")
KINDS = {".json", ".txt", ".safetensors", ".md", ""}


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> dict[str, Repository]:
    root = tmp_path_factory.mktemp("released")
    return {SD: stable_diffusion(root / "sd"), OPEN_CLIP: open_clip(root / "clip")}


@pytest.fixture
def hub(released, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what a cut can lose; 10 MB
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between two tries
    copies = {name: Repository(dict(each.files)) for name, each in released.items()}
    with serving(copies) as hub:
        yield hub


@pytest.fixture
def get(hub, tmp_path):
    """A function: fetches sd15 from the local hub into tmp_path/models."""

    def get(**settings):
        settings = {"accept": True, "endpoint": hub.endpoint} | settings
        return fetch("sd15", out=tmp_path / "models" / "sd15", **settings)

    return get


def is_complete(place: Path, hub) -> bool:
    """Every byte as the repositories have it, and nothing else."""
    sd, clip = hub.repositories[SD].files, hub.repositories[OPEN_CLIP].files
    wanted = {f"clip/{name}": clip[name] for name in clip if name.startswith("open_clip_")}
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        wanted[f"text-to-image/{name}"] = sd[name]
    for name in ("merges.txt", "vocab.json", "tokenizer_config.json"):
        wanted[f"text-to-image/tokenizer/{name}"] = sd[f"tokenizer/{name}"]
    for part in PARTS:
        wanted[f"text-to-image/{part}.safetensors"] = sd[f"{part}.fp16.safetensors"]
        config = f"{Path(part).parent}/config.json"
        wanted[f"text-to-image/{config}"] = sd[config]
    ours = ("card.json", "README.md", zoo.SUMS)
    found = {name: content for name, content in read(place).items() if not name.endswith(ours)}
    beside = [path.name for path in place.parent.iterdir()]
    return found == wanted and beside == ["sd15"] and not list(place.glob(".*"))


# --- a good day -----------------------------------------------------------------------------------


def test_the_whole_model_and_nothing_else(get, hub, capsys):
    place = get()
    assert is_complete(place, hub)
    assert {path.suffix for path in place.rglob("*") if path.is_file()} == KINDS
    said = capsys.readouterr().out
    order = ["CreativeML Open RAIL-M", "to download", "there and whole"]
    assert sorted(order, key=said.index) == order
    for part, name in (("text-to-image", SD), ("clip", OPEN_CLIP)):
        card = json.loads((place / part / "card.json").read_text())
        assert card["commit"] == hub.repositories[name].commit
        assert card["commit"] in (place / part / "README.md").read_text()
        sums = [line.split("  ") for line in (place / part / zoo.SUMS).read_text().splitlines()]
        assert len(sums) == len(card["files"]) + 2
        for digest, file in sums:
            assert hashlib.sha256((place / part / file).read_bytes()).hexdigest() == digest


def test_the_half_precision_weights_are_those_that_the_pipelines_read(get, hub):
    place = get()
    model = TextToImagePipeline.from_pretrained(zoo.folder(str(place), "text-to-image"))
    sent = load(hub.repositories[SD].files[HALF])
    read_weights = model.unet.state_dict()
    assert set(sent) == set(read_weights)
    assert all((read_weights[name] == weight.float()).all() for name, weight in sent.items())
    words = load(hub.repositories[SD].files["text_encoder/model.fp16.safetensors"])
    (row,) = [v for k, v in words.items() if k.endswith("token_embedding.weight")]
    assert (model.text_encoder.get_input_embeddings().weight == row.float()).all()
    theirs = StableDiffusionPipeline.from_pretrained(
        place / "text-to-image", safety_checker=None, feature_extractor=None
    )
    assert theirs.tokenizer("a red ball").input_ids == model.tokenizer("a red ball").input_ids
    clip = Clip.from_pretrained(zoo.folder(str(place), "spatext/clip"))
    mine = load_file(place / "clip" / "open_clip_model.safetensors")
    assert (clip.model.visual.proj == mine["visual.proj"]).all()


def test_what_is_there_is_used_without_a_request(get, hub, monkeypatch, capsys):
    place = get()
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for folder in (place.parent, place):
        folder.chmod(0o555)  # a class's shared models
    try:
        assert get(accept=False) == place
    finally:
        for folder in (place.parent, place):
            folder.chmod(0o755)
    assert hub.asked == []
    assert capsys.readouterr().out.count("there and whole") == 4


def test_published_reco_becomes_a_reco_model(tmp_path, hub):
    """In one precision, with a slow tokenizer whose bins stand in a file of their own."""
    whole = stable_diffusion(tmp_path / "released", length=154, bins=1000)
    whole.files = {name: each for name, each in whole.files.items() if ".fp16." not in name}
    hub.repositories[RECO] = whole
    place = fetch("reco-coco", out=tmp_path / "reco-coco", accept=True, endpoint=hub.endpoint)
    assert "added_tokens.json" in {path.name for path in (place / "tokenizer").iterdir()}
    model = ReCoPipeline.from_pretrained(zoo.folder(str(place), "reco"))
    assert (model.position_tokens.bins, model.position_tokens.length) == (1000, 154)
    assert "<bin100> <bin200> <bin500> <bin799>" in str(model.tokens(SCENE))
    assert model(SCENE, num_inference_steps=2).images[0].size == (64, 64)


# --- the licence ----------------------------------------------------------------------------------


def test_without_a_terminal_nothing_is_accepted_silently(get, hub, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(ValueError, match="accept is not given: read the licences above"):
        get(accept=False)
    assert "deceive" in capsys.readouterr().out
    assert hub.asked == []


@pytest.mark.parametrize("word", ["yes", "y", "", "no"])
def test_a_terminal_asks(get, hub, monkeypatch, word, tmp_path):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda prompt: word)
    if word == "yes":
        assert is_complete(get(accept=False), hub)
        return
    with pytest.raises(ValueError, match="nothing was downloaded"):
        get(accept=False)
    assert not [path for path in hub.asked if "/resolve/" in path]
    assert not (tmp_path / "models").exists()


# --- a bad day ------------------------------------------------------------------------------------


def test_a_cut_connection_is_taken_up_where_it_was(get, hub):
    once = []

    def cut(handler):
        if not (handler.path.endswith(HALF)):
            return False
        if "/cdn/" not in handler.path or once:
            return False
        once.append(handler.path)
        content = hub.repositories[SD].files[HALF]
        handler.cut(200, content, 100_500)
        return True

    hub.answer = cut
    assert is_complete(get(), hub)
    assert hub.ranges == [f"{HALF} bytes=100000-"]


class Limited:
    """A file whose writer is stopped after some bytes, as by Ctrl-C or by a full disk."""

    def __init__(self, file, left: int, error: BaseException) -> None:
        self.file, self.left, self.error = file, left, error

    def write(self, chunk: bytes) -> None:
        self.file.write(chunk[: self.left])
        if len(chunk) > self.left:
            raise self.error
        self.left -= len(chunk)

    def __getattr__(self, name):
        return getattr(self.file, name)


def stopping(monkeypatch, left: int, error: BaseException) -> None:
    real = huggingface_hub.file_download.http_get
    limited = lambda url, content, **how: real(url, Limited(content, left, error), **how)  # noqa: E731
    monkeypatch.setattr(hubs, "http_get", limited)


def test_stopped_again_and_again_it_loses_nothing(get, hub, monkeypatch):
    """Each run gets some bytes further, and no byte is sent twice."""
    stops, at_random = 0, random.Random(0)
    while True:
        assert stops < 60
        with monkeypatch.context() as patch:
            stopping(patch, at_random.randrange(1, 500_000), KeyboardInterrupt())
            try:
                place = get()
                break
            except KeyboardInterrupt:
                stops += 1
    assert stops > 3
    assert is_complete(place, hub)
    assert len(hub.ranges) == stops


def test_another_commit_in_between_mixes_nothing(get, hub, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 100_000, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            get()
    files = hub.repositories[SD].files
    for name in (HALF, "vae/config.json"):
        changed = bytearray(files[name])
        changed[len(changed) // 2] ^= 1 if name == HALF else 0  # in what is there already
        files[name] = bytes(changed)
    files["tokenizer/vocab.json"] += b"\n"
    assert is_complete(get(), hub)


def test_killed_it_goes_on(hub, tmp_path):
    """As a process, by a signal that nothing can catch."""
    real_sleep = lambda seconds: signal.sigtimedwait([], seconds)  # noqa: E731

    def slowly(handler):
        if "/cdn/" in handler.path:
            real_sleep(0.02)
        return False

    hub.answer = slowly
    place = tmp_path / "models" / "sd15"
    words = ["models", "fetch", "sd15", "--accept", "--endpoint", hub.endpoint, "--out", str(place)]
    code = "import sys; from spatext_lab.cli.parser import main; raise SystemExit(main())"
    env = os.environ | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    at_random = random.Random(1)
    for _ in range(3):
        hub.asked.clear()
        run = subprocess.Popen([sys.executable, "-c", code, *words], env=env, stdout=-3, stderr=-3)
        few = at_random.randrange(1, 12)
        while run.poll() is None and len(hub.asked) < few:
            real_sleep(0.005)
        run.kill()
        run.wait()
        for part in ("text-to-image", "clip"):
            if (place / part).is_dir():
                assert zoo.verify(place / part) == []
    assert subprocess.run([sys.executable, "-c", code, *words], env=env, stdout=-3).returncode == 0
    assert is_complete(place, hub)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "wrong",
    [flipped, lambda c: b"<html>Please log in to the network</html>", lambda c: c + c[:9]],
    ids=["a wrong bit", "a proxy's page", "too long"],
)
@pytest.mark.parametrize("file", [HALF, "vae/config.json"])
def test_what_is_not_as_promised_is_deleted(get, hub, tmp_path, wrong, file):
    hub.sent = lambda name, content: wrong(content) if name == file else content
    with pytest.raises(OSError, match=rf"{file} from http.* is not what the hub promises"):
        get()
    assert not (tmp_path / "models" / "sd15" / "text-to-image").exists()
    assert not list(tmp_path.rglob("*.part"))
    hub.sent = lambda name, content: content
    hub.asked.clear()
    assert is_complete(get(), hub)
    assert not [path for path in hub.asked if path.endswith("tokenizer/vocab.json")]


def test_a_server_without_ranges_sends_the_file_anew(get, hub, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 100_000, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            get()

    def whole(handler):
        del handler.headers["Range"]
        return False

    hub.answer = whole
    assert is_complete(get(), hub)
    assert hub.ranges == []


def fail(status: int, code: str = ""):
    def answer(handler):
        handler.fail(status, code)
        return True

    return answer


def page(handler):
    handler.reply(200, b"<html>Please log in to the network</html>", "text/html")
    return True


REFUSALS = {
    "gated": (fail(401, "GatedRepo"), "asks for permission: accept its terms on that page"),
    "private": (fail(401, "RepoNotFound"), "does not exist, or is private"),
    "missing": (fail(404, "RepoNotFound"), "does not exist, or is private"),
    "no such commit": (fail(404, "RevisionNotFound"), "has no revision"),
    "busy": (fail(503), "answers HTTP 503 Service Unavailable; run the same command again"),
    "forbidden": (fail(403), "answers HTTP 403 Forbidden"),
    "a proxy's page": (page, "is no hub"),
}


@pytest.mark.parametrize("how", REFUSALS)
def test_a_refusal_is_one_line_that_says_what_to_do(hub, tmp_path, capsys, how):
    hub.answer, message = REFUSALS[how]
    out = str(tmp_path / "models" / "sd15")
    words = ["models", "fetch", "sd15", "--accept", "--endpoint", hub.endpoint, "--out", out]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert f"{hub.endpoint}/{SD}" in error or how == "a proxy's page"
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("how", ["gated", "missing", "busy"])
def test_a_refusal_of_a_file_is_one_line_too(get, hub, how):
    refuse, message = REFUSALS[how]
    hub.answer = lambda handler: refuse(handler) if "resolve" in handler.path else False
    with pytest.raises(OSError, match=message):
        get()


def test_no_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match=r"127.0.0.1:9 cannot be reached \(ConnectError"):
        fetch("sd15", out=tmp_path / "sd15", accept=True, endpoint="http://127.0.0.1:9")


def test_offline_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"HF_HUB_OFFLINE is set.*run the command with HF_HUB_OFF"):
        fetch("sd15", out=tmp_path / "sd15", accept=True)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://127.0.0.1", "http://", ""])
def test_an_endpoint_is_an_address(get, endpoint):
    if endpoint:
        with pytest.raises(ValueError, match=r"endpoint is '.*'; pass an address"):
            get(endpoint=endpoint)
    else:
        assert hubs.checked_endpoint(endpoint) == constants.ENDPOINT


def test_a_repository_of_pickles_is_refused(get, hub):
    files = hub.repositories[SD].files
    for name in [name for name in files if name.startswith("unet/") and "safetensors" in name]:
        del files[name]
    with pytest.raises(OSError, match=r"weights as pickles only \(.*ckpt\), and nothing is unpick"):
        get()
    del files["unet/config.json"]
    with pytest.raises(OSError, match=r"has no unet/config.json at commit \w{12}"):
        get()


def test_a_mirror_that_lists_names_alone_is_refused(get, hub):
    def names(handler):
        listing = hub.repositories[SD].listing(SD)
        listing["siblings"] = [{"rfilename": one["rfilename"]} for one in listing["siblings"]]
        handler.reply(200, json.dumps(listing).encode(), "application/json")
        return True

    hub.answer = names
    with pytest.raises(OSError, match=r"lists no checksum of tokenizer/\w+.\w+; pass another end"):
        get()


def test_a_repository_with_code_is_taken_without_it(get, hub):
    assert "run.py" in hub.repositories[SD].files
    assert not list(get().rglob("*.py"))


def test_settings_that_load_from_elsewhere_do_not_land(get, hub, tmp_path):
    files = hub.repositories[SD].files
    files["vae/config.json"] = json.dumps({"auto_map": {"AutoModel": "other/code"}}).encode()
    with pytest.raises(ValueError, match=r"auto_map is .*it names code"):
        get()
    assert not (tmp_path / "models" / "sd15" / "text-to-image").exists()


# --- the disk -------------------------------------------------------------------------------------


def test_too_little_space_is_seen_before_the_download(get, hub, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**6, 0, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"has 1 MB free, and 2 MB are needed: free some space"):
        get()
    assert not [path for path in hub.asked if "/resolve/" in path]


def test_a_disk_that_is_full_halfway_loses_nothing(get, hub, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 100_000, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(OSError, match=r"No space left on device: '.*\.part'"):
            get()
    assert is_complete(get(), hub)
    assert hub.ranges == [f"{HALF} bytes=100000-"]


# --- what is there already ------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["a bit", "cut", "gone", "the seal"])
def test_a_damaged_model_is_repaired_by_what_it_lacks(get, hub, harm):
    place = get()
    path = place / "text-to-image" / (zoo.SUMS if harm == "the seal" else UNET)
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if harm == "cut" else flipped(content))
    (place / "text-to-image" / "notes.md").write_text("mine\n")
    hub.repositories[SD].revisions = ()  # main has moved on, and the card's commit is asked for
    hub.asked.clear()
    get()
    asked = [Path(each).parent.name for each in hub.asked if "/resolve/" in each]
    assert asked == ([] if harm == "the seal" else ["unet"])
    assert zoo.verify(place / "text-to-image") == []
    assert (place / "text-to-image" / "notes.md").read_text() == "mine\n"
    assert path.read_bytes() == content or harm == "the seal"


def test_a_class_has_the_same_weights(get, hub, tmp_path):
    sd, clip = (hub.repositories[name].commit for name in (SD, OPEN_CLIP))
    place = get(revision=(sd, clip))
    hub.asked.clear()
    assert get(revision=(sd, clip)) == get() == place
    assert hub.asked == []
    with pytest.raises(ValueError, match=f"is at revision {sd}, and {clip} is asked"):
        get(revision=(clip, sd))
    with pytest.raises(ValueError, match=r"revision is \['main'\]; pass one for each of stable-"):
        get(revision=("main",))
    with pytest.raises(OSError, match="has no revision 'none'"):
        fetch(
            "sd15",
            out=tmp_path / "other",
            accept=True,
            endpoint=hub.endpoint,
            revision=("none", clip),
        )


def test_a_model_that_was_put_there_by_hand_is_used(get, hub):
    place = get()
    for part in ("text-to-image", "clip"):
        for name in ("card.json", "README.md", zoo.SUMS):
            (place / part / name).unlink()
    hub.asked.clear()
    before = read(place)
    assert get() == place
    (place / "text-to-image" / UNET).unlink()
    with pytest.raises(ValueError, match=f"was not fetched, and has no {UNET}: complete it"):
        get()
    assert hub.asked == []
    assert read(place).items() < before.items()


def test_the_state_of_each_model_is_told(get, hub, tmp_path, monkeypatch):
    """What doctor says: a model that is not there is no failure, a damaged one is."""
    monkeypatch.chdir(tmp_path)
    assert state("sd15") == "not there, and not needed (3.9 GB)"
    place = get()
    commits = [hub.repositories[name].commit[:12] for name in (SD, OPEN_CLIP)]
    sd, clip = Path("models/sd15/text-to-image"), Path("models/sd15/clip")
    assert state("sd15") == f"{sd} at commit {commits[0]}; {clip} at commit {commits[1]}"
    (clip / "card.json").rename(tmp_path / "card.json")
    assert state("sd15").endswith(f"{clip}, not from models fetch")
    shutil.rmtree(clip)
    assert state("sd15").endswith(f"; {clip} is missing")
    with (place / "text-to-image" / UNET).open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match=rf"{sd / UNET} is damaged: \d+ bytes, not \d+"):
        state("sd15")
    (place / "text-to-image" / UNET).unlink()
    with pytest.raises(ValueError, match=f"{sd / UNET} is missing"):
        state("sd15")


def test_an_unknown_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="name is 'sdxl'; there are sd15, reco-coco"):
        fetch("sdxl", out=tmp_path)
