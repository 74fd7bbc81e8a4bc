"""What is installed and shipped: a slim core, extras that are asked for by name, a complete sdist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

EXTRAS = {
    "codes": ("segno", "spake2"),
    "relay": ("aiohttp", "prometheus_client", "OpenSSL"),
    "rpc": ("cattrs", "msgpack", "prometheus_client"),
}
"""The modules of each extra."""

MAY_IMPORT = {
    "codes": "plugins/dialkey_rendezvous/",
    "relay": "plugins/dialkey_relay/server/",
    "rpc": "protocols/dialkey_rpc/",
}


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def without(extra: str) -> str:
    return f"import sys\nfor name in {EXTRAS[extra]!r}: sys.modules[name] = None\n"


def test_each_extra_is_what_pyproject_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {*EXTRAS, "all"}
    assert extras["all"] == ["dialkey[codes,relay,rpc]"]
    named = {"prometheus-client": "prometheus_client", "pyopenssl": "OpenSSL"}
    for extra, modules in EXTRAS.items():
        names = [re.split(r"[>=<]", each)[0] for each in extras[extra]]
        assert {named.get(name, name) for name in names} == set(modules)


@pytest.mark.parametrize("module", sorted({each for extra in EXTRAS.values() for each in extra}))
def test_only_its_own_part_imports_what_an_extra_brings(module: str) -> None:
    pattern = re.compile(rf"^\s*(?:import|from) {module}\b", re.MULTILINE)
    allowed = tuple(MAY_IMPORT[extra] for extra, modules in EXTRAS.items() if module in modules)
    found = [
        file.relative_to(ROOT).as_posix()
        for folder in ("framework", "protocols", "plugins")
        for file in (ROOT / folder).rglob("*.py")
        if pattern.search(file.read_text(encoding="utf-8"))
    ]
    assert found, "nothing needs it"
    assert [name for name in found if not name.startswith(allowed)] == []


def test_rpc_without_its_extra_says_what_to_install() -> None:
    done = python(without("rpc") + "import dialkey_rpc")
    assert done.returncode == 1
    assert (
        "RPC needs cattrs, msgpack, prometheus_client, which dialkey installs on request only"
        in done.stderr
    )
    assert 'pip install "dialkey[rpc]"' in done.stderr


def test_a_relay_server_without_its_extra_is_one_line() -> None:
    script = (
        "for name in ('aiohttp', 'prometheus_client'): sys.modules[name] = None\n"
        "from dialkey.cli import main\n"
        "main(['relay', '--dev'])\n"
    )
    done = python("import sys\n" + script)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("dialkey: a relay server needs aiohttp, prometheus_client,")
    assert 'pip install "dialkey[relay]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_code_without_its_extra_is_one_line() -> None:
    script = (
        "for name in ('spake2', 'segno'): sys.modules[name] = None\n"
        "from dialkey.cli import main\n"
        "main(['receive', '7-amber-violin', '--rendezvous', 'endpointaa'])\n"
    )
    done = python("import sys\n" + script)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("dialkey: a code needs spake2,")
    assert 'pip install "dialkey[codes]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_everything_else_works_without_extras() -> None:
    script = (
        "import sys\n"
        "for name in ('aiohttp', 'prometheus_client', 'cattrs', 'msgpack'): sys.modules[name] = None\n"
        "import dialkey_blobs.commands, dialkey_blobs.demo, dialkey_gossip.commands, dialkey_ping\n"
        "from dialkey_relay import Relay, RelayTransport, Grant\n"
        "from dialkey.cli import main\n"
        "main(['--help'])\n"
    )
    done = python(script)
    assert (done.returncode, done.stderr) == (0, "")


LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")


def test_the_sdist_holds_what_its_texts_speak_of(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=100,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        top = tar.getnames()[0].partition("/")[0]
        tar.extractall(tmp_path, filter="data")
    shipped = tmp_path / top
    texts = sorted(shipped.rglob("*.md"))
    assert {"README.md", "CONTRIBUTING.md"} <= {text.name for text in texts}
    missing = [
        f"{text.relative_to(shipped)}: {link}"
        for text in texts
        for link in LINK.findall(text.read_text(encoding="utf-8"))
        if not (text.parent / link).exists()
    ]
    assert not missing
    for name in ("Makefile", "tests/test_layout.py", ".ci/run", "pyproject.toml"):
        assert (shipped / name).exists(), name
    assert not list(shipped.rglob("__pycache__"))
