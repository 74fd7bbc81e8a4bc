"""Records that the real iroh resolves and publishes; the network is loopback in a namespace."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

AGENT = Path(__file__).parents[1] / "support" / "discovery_wheel_agent.py"
THEIR_URL, OUR_URL = b"https://dns.iroh.link/pkarr", b"http://127.0.0.1:8080/pkarr"

pytestmark = pytest.mark.interop


def run(how: str, tmp_path: Path, *path: Path) -> dict[str, object]:
    """Run the agent where there is nothing but loopback and its own resolver."""
    unshare = shutil.which("unshare")
    probe = [unshare or "", "--net", "--mount", "true"]
    if unshare is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("network namespaces need unshare and root")
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\n")
    script = f'ip link set lo up; mount --bind {conf} /etc/resolv.conf; exec "$@"'
    command = [
        unshare,
        "--net",
        "--mount",
        "sh",
        "-c",
        script,
        "-",
        sys.executable,
        str(AGENT),
        how,
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "no_proxy": "*"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_iroh_resolves_over_dns_what_we_publish(tmp_path: Path) -> None:
    found = run("dns", tmp_path)
    assert found["iroh_found_us_s"] < 10  # type: ignore[operator]
    assert found["dns_queries"]
    assert found["gets"] == 0, "over DNS alone"


def test_iroh_and_we_resolve_over_http_what_the_other_publishes(tmp_path: Path) -> None:
    found = run("http", tmp_path, patched(tmp_path))
    assert found["gets"], "iroh asked our server over HTTP"
    assert found["published"] == [f"{str(found['relay']).rstrip('/')}/"]
    assert found["by_http"] == found["by_dns"] == 1
    assert found["we_found_iroh"] is True


def test_iroh_and_we_find_each_other_by_our_own_server(tmp_path: Path) -> None:
    found = run("server", tmp_path, patched(tmp_path))
    assert found["iroh_found_us_s"] < 10  # type: ignore[operator]
    assert found["gets"], "iroh asked over HTTP"
    assert found["dns_found"], "iroh asked over DNS"
    assert found["published"] == [f"{str(found['relay']).rstrip('/')}/"]
    assert found["by_http"] == found["by_dns"] == 1


def patched(tmp_path: Path) -> Path:
    """The wheel takes no discovery URL, so a throw-away copy gets ours, which is as long."""
    spec = importlib.util.find_spec("iroh")
    assert spec is not None
    assert spec.origin is not None
    copy = tmp_path / "patched" / "iroh"
    shutil.copytree(Path(spec.origin).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    library = copy / "libiroh_ffi.so"
    if not library.exists():
        pytest.skip("this platform's wheel has another form")
    data = library.read_bytes()
    assert data.count(THEIR_URL) >= 1
    assert len(THEIR_URL) == len(OUR_URL)
    library.write_bytes(data.replace(THEIR_URL, OUR_URL))
    return copy.parent
