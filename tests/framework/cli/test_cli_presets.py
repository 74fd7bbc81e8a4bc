"""Whose services a command uses: what chooses them, what is said of it, and what happens offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from dialkey import presets
from dialkey.cli import Options, Output, main
from dialkey.errors import InvalidInput, Offline

PRESET_OF_TESTS = os.environ.get("DIALKEY_PRESET")


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIALKEY_PRESET", "DIALKEY_SERVICES"):
        monkeypatch.delenv(name, raising=False)


def test_tests_stay_offline() -> None:
    assert PRESET_OF_TESTS == "minimal"


def test_what_chooses_and_in_which_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Options().chosen_preset() is presets.public
    assert Options().endpoint_relays() == presets.public.relays
    relay = Options(relays=("https://relay.example",))
    assert relay.chosen_preset() is presets.minimal, "who names a relay uses no public service"
    assert relay.endpoint_relays() == ("https://relay.example",)
    monkeypatch.setenv("DIALKEY_PRESET", "local")
    assert Options().chosen_preset() is presets.local
    assert relay.chosen_preset() is presets.local
    monkeypatch.setenv("DIALKEY_SERVICES", "https://ours.example")
    assert Options().chosen_preset() == presets.services("https://ours.example")
    assert Options(services="https://x.example").chosen_preset() == presets.services(
        "https://x.example"
    )
    assert Options(preset="public").chosen_preset() is presets.public
    with pytest.raises(InvalidInput, match="either --preset or --services"):
        Options(preset="public", services="https://x.example").chosen_preset()
    monkeypatch.delenv("DIALKEY_SERVICES")
    monkeypatch.setenv("DIALKEY_PRESET", "nonsense")
    with pytest.raises(
        InvalidInput, match="DIALKEY_PRESET is 'nonsense', which is not one of: public"
    ):
        Options().chosen_preset()


async def _remarks(options: Options, capsys: pytest.CaptureFixture[str]) -> str:
    class Bound(Exception):
        pass

    class NoEndpoint:
        @staticmethod
        def bind(**values: object) -> object:
            raise Bound

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dialkey.endpoint.Endpoint", NoEndpoint)
        with pytest.raises(Bound):
            await options.open_endpoint()
    out, err = capsys.readouterr()
    assert out == ""
    return err


async def test_whose_services_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    err = await _remarks(Options(), capsys)
    assert err == (
        "Using iroh's public relays and discovery, run by n0;"
        " --preset, --services URL or DIALKEY_SERVICES choose others.\n"
    )
    assert await _remarks(Options(preset="relay_only"), capsys) == err
    assert await _remarks(Options(json=True), capsys) == ""
    assert await _remarks(Options(preset="minimal"), capsys) == ""
    assert await _remarks(Options(services="https://x.example"), capsys) == (
        "Using the services at https://x.example/\n"
    )
    assert "no server" in await _remarks(Options(preset="local"), capsys)


@pytest.mark.parametrize("way_out", [True, False])
async def test_relays_that_nobody_named_are_waited_for_only_where_there_is_a_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way_out: bool
) -> None:
    waited = []

    class NoRelay:
        async def online(self, timeout: float) -> None:
            waited.append(timeout)
            raise Offline("no relay let us in: four reasons")

    monkeypatch.setattr("dialkey.network.interfaces.has_way_out", lambda: way_out)
    endpoint: Any = NoRelay()
    await Options().until_online(endpoint, Output())
    assert waited == ([5.0] if way_out else [0.0])
    await Options(preset="minimal").until_online(endpoint, Output())
    await Options(preset="local").until_online(endpoint, Output())
    assert len(waited) == 1
    err = capsys.readouterr().err
    assert err == "No relay can be reached: for now the ticket works in this network only.\n"
    # A relay that somebody named is waited for, and what is wrong with it is said.
    await Options(relays=("https://x.example",)).until_online(endpoint, Output())
    assert waited[1:] == [10.0]
    assert "four reasons" in capsys.readouterr().err


@pytest.mark.lab
def test_offline_a_command_neither_waits_nor_nags() -> None:
    """In a namespace without any network, where the default is the public services."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--net", "true"], check=False).returncode:
        pytest.skip("network namespaces need unshare and root")
    listening = [sys.executable, "-m", "dialkey", "ping", "--listen", "--bind", "127.0.0.1:0"]
    process = subprocess.Popen(
        [unshare, "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "-", *listening],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        ticket = process.stdout.readline().strip()
        process.terminate()
        err = process.communicate(timeout=60)[1]
    shown = subprocess.run(
        [sys.executable, "-m", "dialkey", "ticket", "inspect", ticket, "--json"],
        capture_output=True,
        check=True,
    )
    assert json.loads(shown.stdout)["addresses"], "nobody has published us"
    said = err.splitlines()
    assert said[0].startswith("Using iroh's public relays")
    assert said[1] == "No relay can be reached: for now the ticket works in this network only."
    assert len(said) <= 3


@pytest.mark.parametrize(
    ("options", "variables", "sentence"),
    [
        (["--relay", "ftp://x"], {}, "ftp://x/ cannot be dialled"),
        (["--services", "ftp://x"], {}, "the URL of services begins with"),
        ([], {"DIALKEY_SERVICES": "ftp://x"}, "the URL of services begins with"),
        (["--relay", "https://x"], {"DIALKEY_RELAY_CA": "gone"}, "gone cannot be read"),
    ],
)
def test_what_the_user_gave_is_refused_in_one_plain_sentence(
    options: list[str],
    variables: dict[str, str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The plugin and the hook that find the fault are not what is wrong."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(["gossip", "a-topic", "--bind", "127.0.0.1:0", *options])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"dialkey: {sentence}")
    assert not [line for line in lines if "plugin" in line or "hook" in line]
