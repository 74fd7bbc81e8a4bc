"""What a relay answers to plain HTTP requests.

Source: docs/wire/relay.md 1.3.
"""

from __future__ import annotations

import json
import re
from typing import Final

from dialkey_relay.http1 import Request, Response

__all__ = ["FIXED_HEADERS", "VERSION", "answer", "answer_beside_tls"]

VERSION: Final = "0.1.0"

FIXED_HEADERS: Final = (
    ("strict-transport-security", "max-age=63072000; includeSubDomains"),
    (
        "content-security-policy",
        "default-src 'none'; frame-ancestors 'none'; form-action 'none'; base-uri 'self'; "
        "block-all-mixed-content; plugin-types 'none'",
    ),
)

_CHALLENGE: Final = re.compile(r"[A-Za-z0-9.\-_]{1,63}")

_INDEX: Final = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>dialkey relay</title></head>
<body><h1>dialkey relay</h1>
<p>This server passes encrypted datagrams between endpoints that cannot reach each other directly.
It speaks the relay protocol of <a href="https://www.iroh.computer/">iroh</a>. There is nothing to
see here, and nothing that it could read.</p></body></html>
"""

_ROBOTS: Final = b"User-agent: *\nDisallow: /\n"


def _not_found() -> Response:
    return Response(404, FIXED_HEADERS, b"Not Found")


def _generate_204(request: Request, fixed: tuple[tuple[str, str], ...]) -> Response:
    challenge = request.header("x-iroh-challenge")
    if challenge is None or not _CHALLENGE.fullmatch(challenge):
        return Response(204, fixed)
    return Response(204, (*fixed, ("x-iroh-response", f"response {challenge}")))


def answer(request: Request) -> Response | None:
    """Answer a request to the relay's own listener; None means that it is for the relay itself."""
    if request.method != "GET":
        return _not_found()
    match request.path:
        case "/relay":
            return None
        case "/ping":
            return Response(200, (("access-control-allow-origin", "*"), *FIXED_HEADERS))
        case "/generate_204":
            return _generate_204(request, FIXED_HEADERS)
        case "/healthz":
            body = {"status": "ok", "version": VERSION, "git_hash": "unknown"}
            headers = (("content-type", "application/json"), *FIXED_HEADERS)
            return Response(200, headers, json.dumps(body, separators=(",", ":")).encode())
        case "/" | "/index.html":
            return Response(
                200, (("content-type", "text/html; charset=utf-8"), *FIXED_HEADERS), _INDEX
            )
        case "/robots.txt":
            return Response(200, FIXED_HEADERS, _ROBOTS)
        case _:
            return _not_found()


def answer_beside_tls(request: Request) -> Response:
    """Answer a request to the plain listener of a relay that serves TLS on another one.

    Only the captive portal check lives there: it must not be redirected to TLS.
    """
    if request.method == "GET" and request.path == "/generate_204":
        return _generate_204(request, ())
    return Response(404, (), b"Not Found")
