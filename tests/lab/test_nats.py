"""Real NATs of the kernel: who reaches whom directly, and how soon, with ourselves and with the wheel."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from certificates import write_certificate
from lab import Lab, Program, why_not
from lab_nat import Home, Internet

from dialkey.testing import NAT_KINDS, NatKind, are_punchable

REASON = why_not()
pytestmark = [pytest.mark.lab, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

AGENT = Path(__file__).parents[1] / "support" / "punch_agent.py"
TIMEOUT_S = 60


class World:
    """A relay in the internet, and whoever meets there."""

    def __init__(self, lab: Lab, internet: Internet, cloud: Home, authority: Path) -> None:
        self.lab = lab
        self.internet = internet
        self.authority = authority
        self.url = f"http://{cloud.public}/"

    async def start(self, home: Home, *arguments: str, wheel: bool = False) -> Program:
        # The wheel trusts no authority of ours, so it cannot ask for its address and is told.
        own = ("--wheel", "--public", home.public) if wheel else ("--ca", str(self.authority))
        return await home.host.start(*arguments, "--url", self.url, *own, agent=AGENT)


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with Lab() as lab:
        internet = Internet(lab)
        cloud = internet.server("cloud")
        files = write_certificate(folder, "lab", [cloud.public])
        relay = await cloud.host.start(
            "relay", cloud.public, str(files.chain), str(files.key), agent=AGENT
        )
        await said(relay, "relay")
        yield World(lab, internet, cloud, files.chain)


async def said(program: Program, event: str) -> dict[str, object]:
    return await asyncio.wait_for(program.wait_for(event), TIMEOUT_S)


@pytest.mark.parametrize(
    ("dials", "listens"),
    [
        ("we", "we"),
        pytest.param("wheel", "we", marks=pytest.mark.slow),
        pytest.param("we", "wheel", marks=pytest.mark.slow),
    ],
)
async def test_sixteen_pairs(tmp_path: Path, dials: str, listens: str) -> None:
    """Four listeners, each dialled by four diallers, all at the same time."""
    async with world(tmp_path) as net:
        listeners = {
            kind: await net.start(
                net.internet.home(f"to-{kind}", nat=kind), "serve", wheel=listens == "wheel"
            )
            for kind in NAT_KINDS
        }
        kinds = {str((await said(each, "serving"))["id"]): kind for kind, each in listeners.items()}
        homes = {kind: net.internet.home(f"by-{kind}", nat=kind) for kind in NAT_KINDS}
        diallers = [
            (kind, await net.start(home, "dial", *kinds, wheel=dials == "wheel"))
            for kind, home in homes.items()
        ]
        found = {}
        for kind, dialler in diallers:
            for _ in kinds:
                met = await said(dialler, "met")
                found[kind, kinds[str(met["id"])]] = met
        for pair, met in found.items():
            print(*pair, met)
        direct = {pair for pair, met in found.items() if met["direct_s"] is not None}
        assert direct == {pair for pair in found if are_punchable(*pair)}
        times = [float(str(found[pair]["direct_s"])) for pair in direct]
        print(f"median time to direct: {statistics.median(times):.3f} s")
        assert statistics.median(times) < 2.0


@pytest.mark.parametrize("wheel_dials", [True, False], ids=["the wheel dials", "we dial"])
@pytest.mark.parametrize(("ours", "theirs"), [("strict", "open"), ("moderate", "moderate")])
async def test_with_the_wheel(
    tmp_path: Path, ours: NatKind, theirs: NatKind, wheel_dials: bool
) -> None:
    async with world(tmp_path) as net:
        mine = net.internet.home("mine", nat=ours)
        wheel = net.internet.home("wheel", nat=theirs)
        dialler, listener = (wheel, mine) if wheel_dials else (mine, wheel)
        serving = await net.start(listener, "serve", wheel=not wheel_dials)
        id = str((await said(serving, "serving"))["id"])
        dialling = await net.start(dialler, "dial", id, wheel=wheel_dials)
        met = await said(dialling, "met")
        print(met)
        assert met["direct_s"] is not None
