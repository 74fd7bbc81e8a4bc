"""Somebody else's distribution, installed: its command is there, its protocol where it is wanted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "dialkey-weather"
version = "1.0"

[project.entry-points.dialkey]
weather = "dialkey_weather"
"""

MODULE = '''
from dialkey import hookimpl


class Weather:
    async def accept(self, connection):
        send = await connection.open_uni()
        await send.write(b"sunny")
        await send.finish()


@hookimpl
async def dialkey_protocols(endpoint):
    return {"weather/1": Weather()}


@hookimpl
def dialkey_commands(cli):
    @cli.command()
    def weather() -> None:
        """Ask for the weather."""
        print("sunny in", __name__)
'''

APPLICATION = """
import asyncio
from dialkey import Endpoint, Router

async def main():
    async with (
        Endpoint.bind(bind="127.0.0.1:0") as here,
        Router(here) as router,
        Endpoint.bind(bind="127.0.0.1:0") as there,
    ):
        print("unasked:", router.alpns())
        print("asked:", router.add_installed("weather", "absent"))
        serving = asyncio.create_task(router.serve())
        async with await there.connect(here.addr(), "weather/1") as connection:
            recv = await connection.accept_uni()
            print((await recv.read_to_end(limit=100)).decode())
        serving.cancel()

asyncio.run(main())
"""


def python(*arguments: str, path: list[str] | None = None, cwd: Path | None = None) -> str:
    # The running pytest may have its paths from .pth files, which PYTHONPATH does not process.
    paths = [*(path or []), *(entry for entry in sys.path if entry)]
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the wheel, install it into a folder of its own, return that folder."""
    source = tmp_path_factory.mktemp("source")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "dialkey_weather.py").write_text(MODULE)
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    python("-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels), cwd=source)
    (wheel,) = wheels.glob("*.whl")
    python(
        *("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"),
        *("--disable-pip-version-check", "--target", str(target), str(wheel)),
    )
    return str(target)


@pytest.mark.slow
def test_its_protocol_is_served_where_it_is_wanted(installed: str) -> None:
    out = python("-c", APPLICATION, path=[installed])
    assert out.splitlines() == ["unasked: ()", "asked: ('weather',)", "sunny"]


OF_ITS_OWN = """
import asyncio
from dialkey import Endpoint, Router
from dialkey_weather import Weather

async def main():
    async with Endpoint.bind(bind="127.0.0.1:0") as here, Router(here) as router:
        router.accept("weather/1", Weather())
        print(router.alpns())

asyncio.run(main())
"""


@pytest.mark.slow
def test_an_application_may_serve_the_same_protocol_itself(installed: str) -> None:
    assert python("-c", OF_ITS_OWN, path=[installed]) == "(b'weather/1',)\n"


@pytest.mark.slow
def test_its_command_is_in_the_command_line(installed: str) -> None:
    help_text = python("-m", "dialkey", "--help", path=[installed])
    assert "weather" in help_text
    assert "Ask for the weather." in help_text
    assert python("-m", "dialkey", "weather", path=[installed]) == "sunny in dialkey_weather\n"
    assert "weather" not in python("-m", "dialkey", "--help")
