"""Every private name of aioquic that `dialkey.quic` uses, and the shape in which it is used.

aioquic promises nothing about these. When a release moves one, this test says which, before a
handshake fails in a way that is hard to read.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import aioquic
import pytest
from aioquic import tls
from aioquic.quic import connection, crypto, logger, packet, packet_builder, recovery, retry
from aioquic.quic.configuration import QuicConfiguration
from quic_pair import Pair, secret_key

QUIC = Path(inspect.getfile(Pair)).parents[2] / "framework" / "dialkey" / "quic"

METHODS = {
    connection.QuicConnection: {
        "_alpn_handler": ["self", "alpn_protocol"],
        "_confirm_handshake": ["self"],
        "_handle_ack_frame": ["self", "context", "frame_type", "buf"],
        "_handle_crypto_frame": ["self", "context", "frame_type", "buf"],
        "_initialize": ["self", "peer_cid"],
        "_parse_transport_parameters": ["self", "data", "from_session_ticket"],
        "_payload_received": ["self", "context", "plain", "crypto_frame_required"],
        "_replenish_connection_ids": ["self"],
        "_serialize_transport_parameters": ["self"],
        "_update_traffic_key": ["self", "direction", "epoch", "cipher_suite", "secret"],
        "_write_application": ["self", "builder", "network_path", "now"],
    },
    tls.Context: {
        "_set_peer_certificate": ["self", "certificate"],
        "handle_message": ["self", "input_data", "output_buf"],
    },
    recovery.QuicPacketRecovery: {"get_probe_timeout": ["self", "include_max_ack_delay"]},
    retry.QuicRetryTokenHandler: {
        "create_token": [
            "self",
            "address",
            "original_destination_connection_id",
            "retry_source_connection_id",
            "now",
        ],
        "validate_token": ["self", "address", "destination_cid", "token", "now"],
    },
    logger.QuicLoggerTrace: {"log_event": ["self", "category", "event", "data"]},
}

ATTRIBUTES = {
    "the connection": [
        "_close_at",
        "_close_event",
        "_crypto_buffers",
        "_crypto_streams",
        "_configuration",
        "_cryptos",
        "_handshake_complete",
        "_handshake_confirmed",
        "_host_cids",
        "_is_client",
        "_local_initial_source_connection_id",
        "_logger",
        "_loss",
        "_network_paths",
        "_original_destination_connection_id",
        "_peer_cid",
        "_quic_logger",
        "_retry_source_connection_id",
        "_spaces",
        "_state",
        "host_cid",
        "original_destination_connection_id",
        "tls",
    ],
    "its CRYPTO streams": ["_ranges"],
    "its loss detection": ["_pto_count", "_rtt_initialized", "_rtt_smoothed"],
    "its TLS engine": [
        "_is_client",
        "_peer_certificate",
        "_peer_certificate_chain",
        "_request_client_certificate",
        "_signature_algorithms",
        "_supported_groups",
        "alpn_negotiated",
        "client_random",
        "handshake_extensions",
        "received_extensions",
    ],
}

PLAIN = {
    crypto: ["CryptoPair", "derive_key_iv_hp"],
    packet: [
        "QuicPacketType",
        "encode_quic_retry",
        "encode_quic_version_negotiation",
        "pull_ack_frame",
        "pull_quic_header",
    ],
    packet_builder: ["QuicPacketBuilder"],
    tls: ["CipherSuite", "Direction", "Epoch", "cipher_suite_hash", "hkdf_expand_label"],
}


def where(name: str) -> str:
    return (
        f"aioquic {aioquic.__version__} has no {name} as dialkey.quic uses it; read aioquic's changes "
        "and mend dialkey/quic, or narrow the range of versions in pyproject.toml"
    )


@pytest.mark.parametrize(
    ("owner", "name", "arguments"),
    [(owner, name, args) for owner, names in METHODS.items() for name, args in names.items()],
)
def test_methods(owner: type, name: str, arguments: list[str]) -> None:
    method = getattr(owner, name, None)
    assert method is not None, where(f"{owner.__name__}.{name}()")
    assert list(inspect.signature(method).parameters) == arguments, where(
        f"{owner.__name__}.{name}"
    )


@pytest.mark.parametrize("owner", ATTRIBUTES)
def test_attributes(owner: str) -> None:
    pair = Pair()
    handshake = pair.client.c.handshake
    assert handshake is not None
    machine = handshake._machine
    holder = {
        "the connection": machine,
        "its CRYPTO streams": machine._crypto_streams[tls.Epoch.INITIAL].receiver,
        "its loss detection": machine._loss,
        "its TLS engine": machine.tls,
    }[owner]
    missing = [name for name in ATTRIBUTES[owner] if not hasattr(holder, name)]
    assert not missing, where(f"{', '.join(missing)} ({owner})")


@pytest.mark.parametrize("module", PLAIN, ids=lambda module: module.__name__)
def test_plain_names(module: object) -> None:
    missing = [name for name in PLAIN[module] if not hasattr(module, name)]  # type: ignore[index]
    assert not missing, where(", ".join(missing))


def test_the_configuration_takes_what_we_give_it() -> None:
    fields = inspect.signature(QuicConfiguration).parameters
    needed = {
        "alpn_protocols",
        "cipher_suites",
        "connection_id_length",
        "idle_timeout",
        "initial_rtt",
        "is_client",
        "max_datagram_size",
        "quic_logger",
        "secrets_log_file",
        "supported_versions",
        "verify_mode",
    }
    assert needed <= set(fields), where(f"QuicConfiguration({', '.join(needed - set(fields))})")


def test_the_buffer_reads_headers() -> None:
    from aioquic._buffer import Buffer

    buffer = Buffer(data=b"abc")
    assert (buffer.tell(), buffer.eof()) == (0, False)
    buffer.seek(3)
    assert buffer.eof()


def test_no_private_name_is_missing_from_these_lists() -> None:
    """Whoever uses another private name of aioquic adds it above."""
    listed = {name for names in METHODS.values() for name in names}
    listed.update(name for names in ATTRIBUTES.values() for name in names)
    for file in ("handshake/driver.py", "handshake/machine.py", "handshake/tls.py"):
        tree = ast.parse((QUIC / file).read_text(encoding="utf-8"))
        own = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        }
        own |= {
            each.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and not node.bases
            for each in node.body
            if isinstance(each, ast.FunctionDef)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                if node.attr.startswith("__"):
                    continue
                assert node.attr in listed | own, f"{file}:{node.lineno} uses {node.attr}"


def test_the_1_rtt_space_of_aioquic_is_dead() -> None:
    """It must own no keys: two owners of one packet-number space would repeat nonces."""
    pair = Pair(client={"secret_key": secret_key(1)})
    pair.run(lambda: pair.client.c.protection is not None)
    handshake = pair.client.c.handshake
    assert handshake is not None
    cryptos = handshake._machine._cryptos[tls.Epoch.ONE_RTT]
    assert not cryptos.send.is_valid()
    assert not cryptos.recv.is_valid()
