"""The page of metrics: which format whom, what it says of itself, and what promtool thinks of it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess

import pytest
from aiohttp import ClientSession
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from dialkey_relay.counters import Counters
from dialkey_relay.server.metrics import (
    OPENMETRICS,
    PLAIN,
    MetricsServer,
    Snapshot,
    prefers_openmetrics,
    render,
)

SNAPSHOT = Snapshot(Counters(), 1, 2, 3)
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What Prometheus 3 asks for."""


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; Version=1.0.0", True),
        ('application/openmetrics-text; version="1.0.0"', True),
        ("application/openmetrics-text; version=2.0.0", False),
        ("application/openmetrics-text; q=0", False),
        ("application/openmetrics-text; q=nonsense", False),
        ("application/openmetrics-text; q=nan", False),
        ("application/openmetrics-text; q=0.1, text/plain", False),
        ("text/plain; q=0.4, application/openmetrics-text; q=0.5", True),
        (PROMETHEUS, True),
        (";;,,==;q=", False),
    ],
)
def test_the_format_is_negotiated(accept: str, openmetrics: bool) -> None:
    assert prefers_openmetrics(accept) is openmetrics


async def test_the_content_type_is_that_of_the_body() -> None:
    async with (
        MetricsServer(("127.0.0.1", 0), lambda: SNAPSHOT) as server,
        ClientSession() as session,
    ):
        host, port = server.addresses[0]
        url = f"http://{host}:{port}/metrics"
        for accept, content_type, parse in (
            (PROMETHEUS, OPENMETRICS, parse_openmetrics),
            ("*/*", PLAIN, parse_plain),
        ):
            async with session.get(url, headers={"Accept": accept}) as response:
                assert response.headers["content-type"] == content_type
                assert response.headers["vary"] == "accept"
                text = await response.text()
            assert text.rstrip().endswith("# EOF") is (content_type == OPENMETRICS)
            found = {
                sample.name: sample.value for family in parse(text) for sample in family.samples
            }
            assert found["dialkey_relay_endpoints"] == 1
            assert found["relayserver_bytes_sent_total"] == 0
        async with session.head(url) as response:
            assert int(response.headers["content-length"]) > 0
            assert await response.read() == b""


async def test_a_reader_that_talks_nonsense_is_told_and_let_go() -> None:
    async with MetricsServer(("127.0.0.1", 0), lambda: SNAPSHOT) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(b"\x16\x03\x01\r\n\r\n")
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()


def test_promtool_has_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (in Debian it is part of the package prometheus)")
    result = subprocess.run(
        [promtool, "check", "metrics"],
        # It reads the older format only.
        input=render(SNAPSHOT, openmetrics=False),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout.decode() + result.stderr.decode()) == (0, "")
