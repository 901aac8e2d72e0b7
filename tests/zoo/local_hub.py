# SPDX-License-Identifier: Apache-2.0
"""A hub on 127.0.0.1 that speaks as much of the Hugging Face hub's HTTP as a download needs, with
tiny models of the real classes that have the released ones' file names; and its bad days."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from safetensors.torch import load_file, save_file

from spatext_lab.course import stand_in

LARGE = (".safetensors", ".bin", ".ckpt")
SD, OPEN_CLIP, RECO = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    "j-min/reco_sd14_coco",
)


@dataclass
class Repository:
    """Files by name, and its only commit; `main` is a branch that leads there."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def listing(self, name: str) -> dict:
        siblings = []
        for file, content in self.files.items():
            header = f"blob {len(content)}\0".encode()
            one = {"rfilename": file, "size": len(content)}
            one["blobId"] = hashlib.sha1(header + content).hexdigest()
            if file.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                one["blobId"] = "0" * 40  # of the pointer
                one["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(one)
        return {"id": name, "modelId": name, "sha": self.commit, "siblings": siblings}


@dataclass
class Hub:
    """What the server has, how it behaves, and what it was asked.

    Args:
        answer: called with the handler before an ordinary answer; True where it has answered.
        sent: the content of a file as it is sent.
    """

    repositories: dict[str, Repository]
    answer: Callable[["Handler"], bool] = lambda handler: False
    sent: Callable[[str, bytes], bytes] = lambda name, content: content
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    endpoint: str = ""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # else each answer waits for an acknowledgement
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(path)
        if self.hub.answer(self):
            return
        if path.startswith("api/models/"):
            self._list(path.removeprefix("api/models/"))
        elif "/resolve/" in path:
            name, _, rest = path.partition("/resolve/")
            self._resolve(name, *rest.split("/", 1))
        else:
            self._send(path.removeprefix("cdn/"))

    do_HEAD = do_GET

    def _list(self, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.fail(401, "RepoNotFound")
        elif (revision or "main") not in (*repository.revisions, repository.commit):
            self.fail(404, "RevisionNotFound")
        else:
            self.reply(200, json.dumps(repository.listing(name)).encode(), "application/json")

    def _resolve(self, name: str, revision: str, file: str) -> None:
        """As the hub does: large files are elsewhere."""
        repository = self.hub.repositories[name]
        if file not in repository.files or revision != repository.commit:
            self.fail(404, "EntryNotFound")
        elif file.endswith(LARGE):
            self.send_response(302)
            self.send_header("Location", f"{self.hub.endpoint}/cdn/{name}/{file}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send(f"{name}/{file}")

    def _send(self, path: str) -> None:
        owner, name, file = path.split("/", 2)
        content = self.hub.repositories[f"{owner}/{name}"].files[file]
        content, asked = self.hub.sent(file, content), self.headers.get("Range")
        if asked is None:
            self.reply(200, content, "application/octet-stream")
            return
        self.hub.ranges.append(f"{file} {asked}")
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        whole = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.reply(206, content[start:], "application/octet-stream", {"Content-Range": whole})

    def reply(self, status: int, body: bytes, kind: str, headers: dict | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.reply(status, b"{}", "application/json", {"X-Error-Code": code})

    def cut(self, status: int, body: bytes, sent: int, headers: dict | None = None) -> None:
        """Promises a body, and closes the connection after a part of it."""
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])
        self.close_connection = True

    def log_message(self, *args) -> None:
        pass


@contextmanager
def serving(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """A hub that has these repositories, until the block ends."""
    hub = Hub(repositories)
    handler = type("Its", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- tiny models with the released ones' file names -----------------------------------------------


def stable_diffusion(folder: Path, **shape: int) -> Repository:
    """Stable Diffusion 1.5's repository: weights in both precisions, pickles, further parts, and
    the names of weights that the library had when it was released."""
    stand_in.stable_diffusion(folder, **shape)
    _old_names(folder / "text_encoder" / "model.safetensors")
    _old_tokenizer(folder / "tokenizer")
    for path in sorted(folder.glob("*/*.safetensors")):
        weights = load_file(path)
        half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        save_file(half, path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    files = read(folder)
    index = json.loads(files["model_index.json"])
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    files["model_index.json"] = json.dumps(index).encode()
    unet = "unet/diffusion_pytorch_model"
    more = ("v1-5-pruned.ckpt", "safety_checker/model.safetensors", f"{unet}.bin", "run.py")
    more += (f"{unet}.non_ema.safetensors", "feature_extractor/preprocessor_config.json")
    return Repository(files | dict.fromkeys(more, b"not wanted" * 50))


def _old_names(path: Path) -> None:
    weights = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(path).items()}
    length = len(weights["text_model.embeddings.position_embedding.weight"])
    weights["text_model.embeddings.position_ids"] = torch.arange(length)[None]
    save_file(weights, path, {"format": "pt"})


def _old_tokenizer(folder: Path) -> None:
    """vocab.json, merges.txt, and the tokens that were added to them, instead of one file."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    merges = [" ".join(pair) for pair in whole["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    added = {each["content"]: each["id"] for each in whole["added_tokens"]}
    if added := {k: v for k, v in added.items() if k not in whole["model"]["vocab"]}:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    length = settings["model_max_length"]
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False}
    token |= {"single_word": False}
    settings = {
        "add_prefix_space": False,
        "bos_token": token | {"content": "<|startoftext|>"},
        "do_lower_case": True,
        "eos_token": token | {"content": "<|endoftext|>"},
        "errors": "replace",
        "model_max_length": length,
        "pad_token": "<|endoftext|>",
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": token | {"content": "<|endoftext|>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def open_clip(folder: Path) -> Repository:
    """OpenCLIP's repository: its own layout and transformers', the latter unused here."""
    files = read(stand_in.open_clip(folder))
    return Repository(files | {"pytorch_model.bin": b"not wanted", "config.json": b"{}"})


def read(folder: Path) -> dict[str, bytes]:
    """A folder's files by name."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
