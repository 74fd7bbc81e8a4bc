"""The parent's side of two worker processes: a server and a client of the same stack."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

WORKER = Path(__file__).with_name("worker.py")
COMMAND_TIMEOUT_S = 30.0


class WorkerError(Exception):
    """A worker could not do what it was told."""


class Process:
    """One worker process."""

    def __init__(self, stack: str) -> None:
        self._stack = stack
        self._process: asyncio.subprocess.Process | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(WORKER),
            self._stack,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._stderr,
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def do(self, command: str, **arguments: object) -> dict[str, float]:
        """Give a command and wait for its result.

        Raises:
            WorkerError: it failed, took too long, or the process is gone.
        """
        reply = await self._ask({"do": command, **arguments})
        return {key: value for key, value in reply.items() if isinstance(value, float | int)}

    async def serve(self) -> str:
        return str((await self._ask({"do": "serve"}))["address"])

    async def offer(self, size: int, seed: int) -> str:
        return str((await self._ask({"do": "offer", "size": size, "seed": seed}))["offer"])

    async def _ask(self, command: dict[str, object]) -> dict[str, object]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(command).encode() + b"\n")
            await process.stdin.drain()
            line = await asyncio.wait_for(process.stdout.readline(), COMMAND_TIMEOUT_S)
        except TimeoutError:
            raise WorkerError(
                f"{command['do']} took longer than {COMMAND_TIMEOUT_S:.0f} s"
            ) from None
        except OSError as exc:
            raise WorkerError(f"the process is gone: {exc}") from exc
        if not line:
            raise WorkerError(f"the process ended: {self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{command['do']}: {reply['error']}")
        result: dict[str, object] = reply["ok"]
        return result

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    async def stop(self) -> None:
        """End the process, by force if it must be."""
        process = self._process
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 3.0)
            except TimeoutError:
                process.kill()
                await process.wait()
        self._stderr.close()


class Pair:
    """A server process that listens and a client process, both fresh."""

    def __init__(self, stack: str) -> None:
        self.stack = stack
        self.server = Process(stack)
        self.client = Process(stack)
        self.address = ""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def _start(self) -> None:
        await self.server.start()
        await self.client.start()
        self.address = await self.server.serve()

    async def restart(self) -> None:
        """Replace both processes: after a failure a late reply could be taken for another's."""
        await self._stop()
        self.server = Process(self.stack)
        self.client = Process(self.stack)
        await self._start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        # A stack whose close hangs is killed: what matters has been measured.
        await self.client.stop()
        await self.server.stop()
