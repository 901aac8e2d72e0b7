# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face hub: what a repository has, and its files, byte for byte.

`huggingface_hub.snapshot_download` keeps whole files only: one that was stopped halfway begins
anew. Here it goes on where it was stopped, to the last 10 MB, and is kept if its checksum is right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

CHUNK = 1 << 20


@dataclass(frozen=True)
class File:
    """A file of a repository.

    Args:
        name: its path in the repository.
        size: in bytes.
        sha256: of its content, where it is stored with LFS, as weights are; "" for other files.
        blob: git's own checksum, of the content or, with LFS, of the pointer to it.
    """

    name: str
    size: int
    sha256: str
    blob: str

    @property
    def checksum(self) -> str:
        """What its content is checked against."""
        return self.sha256 or self.blob

    def is_at(self, path: Path) -> bool:
        """Whether this file, whole, is at a path."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        start = b"" if self.sha256 else f"blob {self.size}\0".encode()  # as git does
        digest = hashlib.new("sha256" if self.sha256 else "sha1", start, usedforsecurity=False)
        with path.open("rb") as content:
            while chunk := content.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest() == self.checksum


@dataclass(frozen=True)
class Repository:
    """A repository at one commit.

    Args:
        name: "owner/name".
        endpoint: the hub's address, or a mirror's.
        commit: 40 hexadecimal digits.
        files: by name.
    """

    name: str
    endpoint: str
    commit: str
    files: dict[str, File]


def checked_endpoint(endpoint: str | None) -> str:
    """The address to ask: the one given, or HF_ENDPOINT, or the hub's own.

    Raises:
        ValueError: it is no address.
        OSError: HF_HUB_OFFLINE forbids to ask any.
    """
    if constants.is_offline_mode():
        raise OSError(
            "HF_HUB_OFFLINE is set, and nothing can be fetched: run the command with "
            "HF_HUB_OFFLINE=0 in front (`make` sets it for its own targets)"
        )
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"endpoint is {endpoint!r:.80}; pass an address, https://HOST")
    return endpoint


def repository(name: str, endpoint: str, revision: str | None = None) -> Repository:
    """Asks the hub what a repository has, by one request.

    Args:
        name: "owner/name".
        endpoint: the hub's address, or a mirror's.
        revision: a commit, a branch or a tag; the main branch if not given.

    Raises:
        OSError: the hub has no such repository or revision, asks for permission, cannot be reached
            or is no hub; names the repository and what to do.
    """
    with explained(name, endpoint, revision):
        found = HfApi(endpoint).model_info(name, revision=revision, files_metadata=True)
    files = {
        each.rfilename: File(
            each.rfilename,
            each.size or 0,
            each.lfs.sha256 if each.lfs else "",
            each.blob_id or "",
        )
        for each in found.siblings or ()
    }
    return Repository(name, endpoint, found.sha or "", files)


def download(source: Repository, file: File, path: Path) -> None:
    """Downloads a file to `path`, or the rest of it: what an earlier call got is kept beside it.

    A cut connection is taken up again, five times without a byte in between.

    Raises:
        OSError: what `repository` raises; the disk is full; or the content is not the one that the
            hub promises, which is deleted then.
    """
    part = path.with_name(f"{path.name}.{file.checksum[:16]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.is_file() and part.stat().st_size > file.size:
        part.unlink()
    url = hf_hub_url(source.name, file.name, revision=source.commit, endpoint=source.endpoint)
    with explained(source.name, source.endpoint, source.commit), part.open("ab") as content:
        try:
            http_get(
                url,
                content,
                resume_size=content.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.name,
            )
        except OSError as error:
            if isinstance(error, HTTPError):
                raise
            if error.errno is not None:  # of the disk
                raise OSError(error.errno, error.strerror, str(part)) from error
            # else it has another size than the list says, which the checksum finds, too
    if not file.is_at(part):
        part.unlink()
        raise OSError(
            f"{source.name}/{file.name} from {source.endpoint} is not what the hub promises "
            f"(checksum {file.checksum[:16]}...): deleted; run the same command again"
        )
    part.replace(path)


@contextmanager
def explained(name: str, endpoint: str, revision: str | None) -> Iterator[None]:
    """Turns what goes wrong with a request into an OSError of one line that says what to do."""
    where = f"{endpoint}/{name}"
    try:
        yield
    except GatedRepoError as error:
        raise OSError(
            f"{where} asks for permission: accept its terms on that page, then run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise OSError(f"{where} has no revision {revision!r:.60}") from error
    except RepositoryNotFoundError as error:
        raise OSError(f"{where} does not exist, or is private (`hf auth login`)") from error
    except RemoteEntryNotFoundError as error:
        raise OSError(f"{where} lacks a file of its own list; try again later") from error
    except HfHubHTTPError as error:
        status = f"HTTP {error.response.status_code} {error.response.reason_phrase}"
        raise OSError(f"{where} answers {status}; run the same command again later") from error
    except HTTPError as error:
        raise OSError(
            f"{endpoint} cannot be reached ({type(error).__name__}: {error!s:.120}); run the same "
            "command again, which goes on where this one stopped, or pass a mirror as endpoint"
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{endpoint} is no hub: it answers {name} with something else") from error
