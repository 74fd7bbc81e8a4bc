"""Tickets told in other ways: what a command says early, and that a code's ticket is not lost."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from dialkey import Endpoint, SecretKey
from dialkey.cli import Ask, CommandLine, Options, Output
from dialkey.errors import InvalidInput, InvalidTicket
from dialkey.identity import EndpointAddr
from dialkey_blobs.hash import Hash
from dialkey_blobs.telling import Heard, Telling
from dialkey_blobs.ticket import BlobTicket

TICKET = BlobTicket(EndpointAddr(SecretKey(bytes(32)).id), Hash(bytes(32)))


class Codes:
    """What a plugin brings, with one ticket and a count of how often it was asked for."""

    def __init__(self, ticket: str = str(TICKET)) -> None:
        self.ticket = ticket
        self.taken: list[str] = []
        self.drawn: list[str] = []

    def looks_like_code(self, text: str) -> bool:
        return text[:1].isdigit()

    def complete(self, before: Sequence[str], text: str) -> list[str]:
        return [*before, text]

    def draw(self, output: Output, ticket: str) -> None:
        self.drawn.append(ticket)

    async def offer(
        self,
        output: Output,
        options: Options,
        endpoint: Endpoint,
        server: str | None,
        ticket: str,
        command: str,
        *,
        ask: Ask | None,
    ) -> None:
        raise AssertionError("nobody offers here")

    async def take(
        self, output: Output, options: Options, server: str | None, code: str, *, ask: Ask | None
    ) -> str:
        self.taken.append(code)
        return self.ticket


def quiet() -> Output:
    return Output(stdout=io.StringIO(), stderr=io.StringIO())


async def test_the_ticket_of_a_code_outlives_an_interruption(tmp_path: Path) -> None:
    """A code is good once, and ``dialkey receive`` says that the same command goes on."""
    codes = Codes()
    heard = Heard(codes, server="s", verify=False)
    folder = tmp_path / "in"

    async def interrupted() -> None:
        async with heard.ticket(quiet(), Options(), ["7", "amber", "violin"], folder) as found:
            assert found == TICKET
            (name,) = os.listdir(folder)
            assert stat.S_IMODE(os.stat(folder / name).st_mode) == 0o600
            assert "amber" not in name
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await interrupted()
    async with heard.ticket(quiet(), Options(), ["7-AMBER.violin"], folder) as found:
        assert found == TICKET
    assert codes.taken == ["7 amber violin"]
    assert os.listdir(folder) == []
    async with heard.ticket(quiet(), Options(), ["7-amber-violin"], folder) as found:
        pass
    assert len(codes.taken) == 2


async def test_where_nothing_can_be_kept_the_ticket_is_shown(tmp_path: Path) -> None:
    output = quiet()
    (tmp_path / "file").touch()
    heard = Heard(Codes(), server="s", verify=False)
    async with heard.ticket(output, Options(), ["7-a-b"], tmp_path / "file") as found:
        assert found == TICKET
    assert isinstance(output.stderr, io.StringIO)
    assert f"go on with: dialkey receive {TICKET}" in output.stderr.getvalue()


async def test_what_a_code_leads_to_has_to_be_a_blob_ticket(tmp_path: Path) -> None:
    heard = Heard(Codes("endpointaaaa"), server="s", verify=False)
    with pytest.raises(InvalidTicket, match="handed over something else than files"):
        async with heard.ticket(quiet(), Options(), ["7-a-b"], tmp_path):
            raise AssertionError("unreachable")
    assert os.listdir(tmp_path) == []


async def test_a_ticket_is_a_ticket_with_and_without_codes(tmp_path: Path) -> None:
    for codes in (None, Codes()):
        heard = Heard(codes, server=None, verify=False)
        async with heard.ticket(quiet(), Options(), [str(TICKET)], tmp_path) as found:
            assert found == TICKET


@pytest.mark.parametrize(
    ("telling", "message"),
    [
        (Telling(Codes(), verify=True), "--verify was given without --code"),
        (Telling(Codes(), by_code=True), "--code needs a rendezvous server"),
        (
            Telling(None, by_code=True, server="s"),
            "the plugin 'rendezvous', which is not installed",
        ),
        (Telling(Codes(), by_code=True, server="s", verify=True), "there is none"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_read(
    telling: Telling, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        telling.check(quiet())


async def test_a_code_comes_on_standard_input_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given, taken in (("7 amber violin\n", 1), (f"{TICKET}\n", 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        codes = Codes()
        heard = Heard(codes, server="s", verify=False)
        async with heard.ticket(quiet(), Options(), ["-"], tmp_path) as found:
            assert found == TICKET
        assert len(codes.taken) == taken


async def test_verify_is_for_codes(tmp_path: Path) -> None:
    heard = Heard(Codes(), server="s", verify=True)
    with pytest.raises(InvalidInput, match="--verify compares words of a code"):
        async with heard.ticket(quiet(), Options(), [str(TICKET)], tmp_path):
            raise AssertionError("unreachable")


def test_services_of_the_environment_are_part_of_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DIALKEY_SERVICES", "https://own.example")
    output = quiet()
    Telling(None).show(output, Options(), str(TICKET))
    assert isinstance(output.stderr, io.StringIO)
    assert f"dialkey receive --services https://own.example {TICKET}" in output.stderr.getvalue()


@pytest.mark.parametrize(
    ("preset", "command"),
    [("local", "dialkey receive --preset local"), ("minimal", "dialkey receive")],
)
def test_a_preset_of_the_environment_without_which_nobody_finds_us_is_part_of_it(
    monkeypatch: pytest.MonkeyPatch, preset: str, command: str
) -> None:
    monkeypatch.setenv("DIALKEY_PRESET", preset)
    output = quiet()
    Telling(None).show(output, Options(), str(TICKET))
    assert isinstance(output.stderr, io.StringIO)
    assert f"{command} {TICKET}\n" in output.stderr.getvalue()


def test_the_command_to_paste_is_whole() -> None:
    codes = Codes()
    for options, expected in (
        (Options(), f"dialkey receive {TICKET}"),
        (
            Options(services="https://example.org/a b"),
            f"dialkey receive --services 'https://example.org/a b' {TICKET}",
        ),
        (Options(preset="public"), f"dialkey receive --preset public {TICKET}"),
    ):
        output = quiet()
        Telling(codes, draws=True).show(output, options, str(TICKET))
        assert isinstance(output.stderr, io.StringIO)
        assert output.stderr.getvalue() == f"On the other machine: {expected}\n"
    assert codes.drawn == [str(TICKET)] * 3
    Telling(codes, draws=False).show(quiet(), Options(), str(TICKET))
    assert len(codes.drawn) == 3


def test_one_plugin_handles_codes() -> None:
    cli = CommandLine()
    assert cli.codes is None
    codes = Codes()
    cli.add_codes(codes)
    assert cli.codes is codes
    with pytest.raises(InvalidInput, match="by another plugin already"):
        cli.add_codes(Codes())
