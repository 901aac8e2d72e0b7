# SPDX-License-Identifier: Apache-2.0
"""`make lab` opens its doors to this computer alone, and only to whoever has the token."""

import re
import urllib.error
import urllib.request
from ipaddress import ip_address

import psutil
import pytest

from tests.jupyterlab import jupyterlab


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with jupyterlab(tmp_path_factory.mktemp("lab")) as started:
        yield started


def test_it_listens_on_loopback_alone(server):
    _, process = server
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    doors = [c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == "LISTEN"]
    assert doors
    assert all(ip_address(door).is_loopback for door in doors)


def test_it_asks_for_a_long_token(server):
    said, _ = server
    assert re.fullmatch(r"[0-9a-f]{40,}", said["token"])
    address = f"{said['url']}api/contents"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address)
    assert refused.value.code == 403
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{address}?token={'0' * len(said['token'])}")
    urllib.request.urlopen(f"{address}?token={said['token']}").close()
