"""An access rule that asks a web server about each client.

Source: docs/wire/relay.md 4.7. Releases of the original disagree about the name of the header, so
both are sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dialkey.identity import EndpointId
from dialkey.places import Places
from dialkey.shares import network_of
from dialkey_relay.access import Admission, AdmitRequest, Denial
from dialkey_relay.errors import RelayConfigError

if TYPE_CHECKING:
    import aiohttp

__all__ = ["HttpCallout"]

TIMEOUT_S: Final = 5.0
YES: Final = b"true"
MAX_CALLS: Final = 64
"""Calls under way at once. Further clients wait, those from addresses with the fewest calls go first,
and whoever waits too long is denied."""


class HttpCallout:
    """Admit whom a web server says ``true`` about.

    A POST without a body carries the endpoint id in headers; status 200 with the body ``true`` means yes,
    anything else no. Close it after use.

    Args:
        url: where to ask, http or https.
        bearer_token: sent as ``Authorization``, for the server to know that it is us.
        timeout_s: for one call.
    """

    def __init__(
        self, url: str, bearer_token: str | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise RelayConfigError(f"access is asked at an http or https URL, not {url!r}")
        self._url = url
        self._headers = {"Authorization": f"Bearer {bearer_token}"} if bearer_token else {}
        self._timeout_s = timeout_s
        # An address may have all of them while nobody else asks. A call that is under way is never ended
        # for another one: beside it there is one more for whoever has fewer.
        self._places = Places(
            MAX_CALLS,
            MAX_CALLS,
            wait_s=timeout_s,
            parting_s=2 * timeout_s,
            least_rate=0.0,
        )
        self._session: aiohttp.ClientSession | None = None

    async def check(self, request: AdmitRequest) -> Admission | Denial:
        """Ask; an exception means that nobody answered as agreed."""
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout_s)
            )
        name = str(request.endpoint_id)
        headers = {**self._headers, "X-Iroh-NodeId": name, "X-Iroh-Endpoint-Id": name}
        async with (
            self._places.hold(network_of(request.remote)),
            self._session.post(self._url, headers=headers, allow_redirects=False) as response,
        ):
            body = await response.content.read(len(YES) + 1)
            return Admission() if response.status == 200 and body == YES else Denial()

    def recheck(self, endpoint_id: EndpointId, admission: Admission) -> str | None:
        """Let clients stay: the server is asked once for each connection."""
        return None

    async def close(self) -> None:
        """Close connections to the web server. Idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None
