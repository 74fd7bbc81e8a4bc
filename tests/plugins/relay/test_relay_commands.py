"""The command ``dialkey relay``."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import signal
import socket
import sys

import pytest
from typer.testing import CliRunner

from dialkey.cli import CommandLine
from dialkey.identity import SecretKey
from dialkey_relay import plugin
from dialkey_relay.client.client import RelayClient
from dialkey_relay.client.dial import Dialer
from dialkey_relay.grants import Grant

A = SecretKey(b"\x01" * 32)

PROGRAM = """
import sys
from dialkey.cli import CommandLine
from dialkey_relay import plugin
cli = CommandLine()
plugin.dialkey_commands(cli)
cli()
"""


def invoke(*arguments):
    cli = CommandLine()
    plugin.dialkey_commands(cli)
    return CliRunner().invoke(cli, ["relay", *arguments])


def test_checking_a_configuration(tmp_path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text('access = "everyone"\n')
    result = invoke("--config", str(path), "--check")
    assert result.exit_code == 0
    assert "is good" in result.stdout
    path.write_text('acces = "everyone"\n')
    result = invoke("--config", str(path), "--check")
    assert result.exit_code != 0
    assert "access: missing" in result.stderr


def test_without_a_configuration_it_says_what_to_do() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "--config FILE, or --dev" in result.stderr


def test_help_names_the_commands() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for word in ("--check", "--dev", "grant", "inspect"):
        assert word in result.stdout


def test_signing_and_inspecting_a_grant(tmp_path) -> None:
    key = SecretKey.generate()
    key.save(tmp_path / "issuer")
    options = ["--issuer", str(tmp_path / "issuer"), "--lifetime", "60", "--rate", "5000"]
    result = invoke("grant", str(A.id), *options)
    assert result.exit_code == 0
    grant = Grant.parse(result.stdout.strip())
    assert grant.is_signed_by(key.id)
    assert (grant.endpoint_id, grant.lifetime_s, grant.bytes_per_second) == (A.id, 60, 5000)
    result = invoke("inspect", str(grant))
    assert str(A.id) in result.stdout
    assert grant.id.hex() in result.stdout
    result = invoke("inspect", str(grant), "--json")
    assert json.loads(result.stdout)["endpoint_id"] == str(A.id)
    assert invoke("inspect", "nonsense").exit_code != 0
    assert invoke("grant", "nonsense", *options).exit_code != 0


def test_help_is_quick_to_import() -> None:
    """Nothing heavy is loaded before a command runs."""
    import subprocess

    code = PROGRAM.replace("cli()", "print([m for m in sys.modules if m in HEAVY])")
    heavy = {"aiohttp", "OpenSSL", "cryptography", "dialkey_relay.server.server"}
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {heavy!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('http_bind_addr = "127.0.0.1:{port}"\nenable_metrics = false', "the relay cannot listen"),
        ('http_bind_addr = "127.0.0.1:0"\nmetrics_bind_addr = "127.0.0.1:{port}"', "the metrics"),
    ],
)
def test_a_port_that_is_taken_is_told(tmp_path, text, message) -> None:
    path = tmp_path / "relay.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path.write_text(text.format(port=port) + '\naccess = "everyone"\n')
        result = invoke("--config", str(path))
    assert result.exit_code == 3
    assert message in result.stderr
    assert f"port {port}: Address already in use (another program" in result.stderr
    assert result.stdout == ""


def test_a_certificate_that_is_missing_is_told(tmp_path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text('access = "everyone"\n[tls]\ncert_mode = "Reloading"\n')
    result = invoke("--config", str(path), "--check")
    assert result.exit_code == 2
    assert f"{tmp_path / 'default.crt'} cannot be read: No such file" in result.stderr
    assert "tls.manual_cert_path" in result.stderr


def test_a_plugin_that_cannot_be_loaded_keeps_the_relay_shut(monkeypatch, tmp_path) -> None:
    """It could be the one with `dialkey_relay_admit`: an open door would be the wrong answer."""
    path = tmp_path / "relay.toml"
    path.write_text('http_bind_addr = "127.0.0.1:0"\naccess = "everyone"\n')
    broken = importlib.metadata.EntryPoint("doorman", "no_such_module", "dialkey")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [broken])
    result = invoke("--config", str(path))
    assert result.exit_code != 0
    assert "'doorman'" in result.stderr
    assert "listening" not in result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_the_program_serves_and_takes_leave(tmp_path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text('http_bind_addr = "127.0.0.1:0"\nenable_metrics = false\naccess = "everyone"\n')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, "relay", "--config", str(path), "--json"),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        line = json.loads(await process.stdout.readline())
    assert line["event"] == "listening"
    (url,) = line["urls"]
    async with RelayClient(url, A, dialer=Dialer(proxy="")) as client:
        await client.connected()
        client.send(A.id, b"hello")
        assert (await client.receive()).content == b"hello"
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await process.communicate()
            assert process.returncode == 143
            async for status in client.watch():
                if status.error is not None:
                    break
        assert "restart" in str(status.error)
