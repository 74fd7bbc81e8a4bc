"""Helpers for tests of the relay: processes, namespaces, a certificate."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HERE = Path(__file__).parent


@attrs.define
class Peer:
    """A process that speaks JSON lines."""

    process: asyncio.subprocess.Process

    async def line(self, timeout: float = 30.0) -> dict[str, object]:
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout):
            line = await self.process.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)

    async def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


@pytest.fixture
async def wheel() -> AsyncIterator[Callable[..., object]]:
    """Start real iroh endpoints: ``await wheel("--serve", …, prefix=[…])``."""
    peers: list[Peer] = []

    async def start(*arguments: str, prefix: tuple[str, ...] = ()) -> Peer:
        process = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            str(HERE / "wheel_peer.py"),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        peers.append(Peer(process))
        return peers[-1]

    yield start
    await asyncio.gather(*(peer.stop() for peer in peers))


@attrs.frozen
class Islands:
    """Two network namespaces that reach this machine and not each other."""

    gateway: str
    names: tuple[str, str]

    def enter(self, number: int) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.names[number])


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def islands() -> Iterator[Islands]:
    """Make two namespaces, each with a cable to this one."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    tag = f"dkr{os.getpid() % 100_000}"
    names = (f"{tag}a", f"{tag}b")
    try:
        _ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel gives no network namespaces: {error.stderr.decode().strip()}")
    gateway = "10.213.0.1"
    try:
        _ip("netns", "add", names[1])
        _ip("address", "add", f"{gateway}/32", "dev", "lo")
        for number, name in enumerate(names, 1):
            inside, outside = f"{tag}i{number}", f"{tag}o{number}"
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
            _ip("address", "add", f"10.213.{number}.1/30", "dev", outside)
            _ip("link", "set", outside, "up")
            _ip("-n", name, "address", "add", f"10.213.{number}.2/30", "dev", inside)
            _ip("-n", name, "link", "set", inside, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "route", "add", f"{gateway}/32", "via", f"10.213.{number}.1")
        yield Islands(gateway, names)
    finally:
        subprocess.run(["ip", "address", "del", f"{gateway}/32", "dev", "lo"], check=False)
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@attrs.frozen
class Certificate:
    """A self-signed certificate for localhost, in files."""

    chain: Path
    key: Path


def write_certificate(folder: Path, name: str = "relay") -> Certificate:
    """Make a certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    files.chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    """A certificate for localhost that nobody knows."""
    return write_certificate(tmp_path)


@pytest.fixture
def make_certificate(tmp_path: Path) -> Callable[[str], Certificate]:
    """Make further certificates for localhost, by name."""
    return lambda name: write_certificate(tmp_path, name)
