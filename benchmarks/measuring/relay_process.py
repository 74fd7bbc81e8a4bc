"""A relay in a process of its own: tells its URL on stdout, ends with its standard input."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dialkey_relay import Everyone, RelayOptions, RelayServer
from measuring.parent import end_with_stdin


async def main() -> None:
    async with RelayServer([Everyone()], RelayOptions(accept_rate_per_address=None)) as relay:
        print(relay.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    end_with_stdin()
    asyncio.run(main())
