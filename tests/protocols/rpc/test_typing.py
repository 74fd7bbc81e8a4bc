"""What type checkers make of a client: mypy in strict mode on a program that uses one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]

PROGRAM: Final = """
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Protocol

import dialkey_rpc as rpc
from dialkey import Endpoint, Router


class Calculator:
    async def add(self, a: int, b: int = 0) -> int:
        return a + b

    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    @rpc.method(idempotent=True, raises=[KeyError])
    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])


class Echo(Protocol):
    async def echo(self, text: str) -> str: ...


class Abstract(ABC):
    @abstractmethod
    async def echo(self, text: str) -> str: ...


async def audit(call: rpc.Call, proceed: rpc.Proceed) -> object:
    return await proceed()


async def main(endpoint: Endpoint, router: Router) -> None:
    reveal_type(router.add(rpc.Rpc(Calculator(), allow={"add": {endpoint.id}}, middleware=[audit])))
    client = await rpc.connect(Calculator, endpoint, "ticket")
    reveal_type(client)
    reveal_type(await client.add(1, 2))
    reveal_type(client.count(3))
    async for number in client.count(3):
        reveal_type(number)
    reveal_type(await client.total(client.count(3)))
    async with rpc.connect(Echo, endpoint, "ticket", timeout=3) as echo:
        reveal_type(await echo.echo("x"))
    reveal_type(await rpc.connect(Abstract, endpoint, "ticket"))
    reveal_type(rpc.with_options(client, timeout=1))
    reveal_type((await rpc.schema(client)).hash)
    # Mistakes:
    await client.add("1")
    await client.subtract(1)
    client.count("3")
    wrong: str = await client.add(1)
    await client.total([1, 2])
"""

REVEALED: Final = [
    "Rpc",
    "Calculator",
    "int",
    "AsyncIterator[int]",
    "int",
    "int",
    "str",
    "Abstract",
    "Calculator",
    "str",
]

MISTAKES: Final = ["arg-type", "attr-defined", "arg-type", "assignment", "arg-type"]


@pytest.mark.slow
def test_a_client_is_typed(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM, encoding="utf-8")
    found = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file="),
            *(f"--cache-dir={ROOT / '.mypy_cache' / 'rpc'}", "--follow-imports=silent", str(file)),
        ],
        env={**os.environ, "MYPYPATH": f"{ROOT / 'framework'}:{ROOT / 'protocols'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    output = found.stdout + found.stderr
    types = re.findall(r'Revealed type is "(.*)"', output)
    assert [re.sub(r"(\w+\.)+", "", each).rstrip("?") for each in types] == REVEALED, output
    errors = re.findall(r"error: .*\[([a-z-]+)\]", output)
    assert errors == MISTAKES, output
    first_mistake = PROGRAM.partition("# Mistakes:")[0].count("\n") + 1
    assert all(int(line) > first_mistake for line in re.findall(r":(\d+): error", output))
