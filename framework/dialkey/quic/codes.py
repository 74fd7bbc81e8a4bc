"""Numbers of the QUIC wire: error codes, frame types, and the exception that carries them.

Sources: RFC 9000 sections 19 and 20, RFC 9001 section 4.8, docs/wire/quic.md 1.9 and 3.16.
"""

from __future__ import annotations

from typing import Final

# --- transport error codes ----------------------------------------------------------------------

NO_ERROR: Final = 0x0
INTERNAL_ERROR: Final = 0x1
CONNECTION_REFUSED: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_LIMIT_ERROR: Final = 0x4
STREAM_STATE_ERROR: Final = 0x5
FINAL_SIZE_ERROR: Final = 0x6
FRAME_ENCODING_ERROR: Final = 0x7
TRANSPORT_PARAMETER_ERROR: Final = 0x8
CONNECTION_ID_LIMIT_ERROR: Final = 0x9
PROTOCOL_VIOLATION: Final = 0xA
APPLICATION_ERROR: Final = 0xC
CRYPTO_BUFFER_EXCEEDED: Final = 0xD
KEY_UPDATE_ERROR: Final = 0xE
AEAD_LIMIT_REACHED: Final = 0xF
NO_VIABLE_PATH: Final = 0x10

APPLICATION_ABANDON_PATH: Final = 0x3E
PATH_RESOURCE_LIMIT_REACHED: Final = 0x3E75
PATH_UNSTABLE_OR_POOR: Final = 0x3E76
NO_CID_AVAILABLE_FOR_PATH: Final = 0x3E77

CRYPTO_ERROR: Final = 0x100
"""Added to a TLS alert number."""

ALERT_HANDSHAKE_FAILURE: Final = 40
ALERT_BAD_CERTIFICATE: Final = 42
ALERT_UNKNOWN_CA: Final = 48
ALERT_CERTIFICATE_REQUIRED: Final = 116
ALERT_NO_APPLICATION_PROTOCOL: Final = 120

# --- frame types --------------------------------------------------------------------------------

PADDING: Final = 0x00
PING: Final = 0x01
ACK: Final = 0x02
ACK_ECN: Final = 0x03
RESET_STREAM: Final = 0x04
STOP_SENDING: Final = 0x05
CRYPTO: Final = 0x06
NEW_TOKEN: Final = 0x07
STREAM: Final = 0x08
MAX_DATA: Final = 0x10
MAX_STREAM_DATA: Final = 0x11
MAX_STREAMS_BIDI: Final = 0x12
MAX_STREAMS_UNI: Final = 0x13
DATA_BLOCKED: Final = 0x14
STREAM_DATA_BLOCKED: Final = 0x15
STREAMS_BLOCKED_BIDI: Final = 0x16
STREAMS_BLOCKED_UNI: Final = 0x17
NEW_CONNECTION_ID: Final = 0x18
RETIRE_CONNECTION_ID: Final = 0x19
PATH_CHALLENGE: Final = 0x1A
PATH_RESPONSE: Final = 0x1B
CONNECTION_CLOSE: Final = 0x1C
APPLICATION_CLOSE: Final = 0x1D
HANDSHAKE_DONE: Final = 0x1E
PATH_ACK: Final = 0x3E
PATH_ACK_ECN: Final = 0x3F
PATH_ABANDON: Final = 0x3E75
PATH_STATUS_BACKUP: Final = 0x3E76
PATH_STATUS_AVAILABLE: Final = 0x3E77
PATH_NEW_CONNECTION_ID: Final = 0x3E78
PATH_RETIRE_CONNECTION_ID: Final = 0x3E79
MAX_PATH_ID: Final = 0x3E7A
PATHS_BLOCKED: Final = 0x3E7B
PATH_CIDS_BLOCKED: Final = 0x3E7C
ADD_ADDRESS_V4: Final = 0x3D7F90
ADD_ADDRESS_V6: Final = 0x3D7F91
REACH_OUT_V4: Final = 0x3D7F92
REACH_OUT_V6: Final = 0x3D7F93
REMOVE_ADDRESS: Final = 0x3D7F94
OBSERVED_ADDRESS_V4: Final = 0x9F81A6
OBSERVED_ADDRESS_V6: Final = 0x9F81A7
DATAGRAM: Final = 0x30
DATAGRAM_WITH_LENGTH: Final = 0x31

MAX_STREAM_COUNT: Final = 1 << 60
TAG_LENGTH: Final = 16
CID_LENGTH: Final = 8
"""Length of our connection ids: the same as iroh's, so that one rule finds them in a short header."""
RESET_TOKEN_LENGTH: Final = 16


class TransportError(Exception):
    """The peer broke a rule of QUIC; the connection is closed with `error_code`."""

    def __init__(self, error_code: int, reason: str, frame_type: int = 0) -> None:
        super().__init__(f"{reason} (0x{error_code:x})")
        self.error_code = error_code
        self.reason = reason
        self.frame_type = frame_type
