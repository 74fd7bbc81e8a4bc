"""TLS for a relay: certificates from files, and TLS over memory buffers.

Why not the TLS of asyncio? Its transport holds a buffer of 256 KiB for each connection, and the
standard library cannot export keying material, which saves real clients a round trip of the relay
handshake. pyOpenSSL, which QUIC brings along anyway, can; over memory buffers an idle connection
costs about 8 KiB, and throughput was measured to be the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs
from OpenSSL import SSL, crypto

from dialkey_relay.errors import RelayConfigError, RelayWireError
from dialkey_relay.handshake import EXPORTER_BYTES, EXPORTER_LABEL

__all__ = ["TlsError", "TlsFiles", "TlsPipe"]

READ_BYTES: Final = 262_144
_MODE_RELEASE_BUFFERS: Final = 0x10
"""SSL_MODE_RELEASE_BUFFERS of OpenSSL, which pyOpenSSL does not name: 34 KiB less when idle."""


class TlsError(RelayWireError):
    """The peer's bytes are not TLS as we speak it."""

    code = "remote.wire.relay.tls"


@attrs.frozen
class _Stamp:
    """What tells that a file has changed."""

    modified_ns: int
    size: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> _Stamp:
        stat = path.stat()
        return cls(stat.st_mtime_ns, stat.st_size, stat.st_ino)


class TlsFiles:
    """A certificate chain and its key in PEM files, which may be replaced while we run.

    Args:
        certificate: the chain, the server's own certificate first.
        key: its private key.

    Raises:
        RelayConfigError: a file cannot be read, or the two do not belong together.
    """

    def __init__(self, certificate: str | Path, key: str | Path) -> None:
        self.certificate = Path(certificate)
        self.key = Path(key)
        self._stamps = self._look()
        self._context = self._load()

    @property
    def context(self) -> SSL.Context:
        """What new connections use."""
        return self._context

    def _look(self) -> tuple[_Stamp, _Stamp]:
        try:
            return _Stamp.of(self.certificate), _Stamp.of(self.key)
        except OSError as error:
            raise RelayConfigError(
                f"the TLS file {error.filename} cannot be read: {error.strerror}",
                hint="tls.manual_cert_path and tls.manual_key_path say where they are",
            ) from None

    def reload_if_changed(self) -> bool:
        """Read the files again if they have changed; return whether they had.

        Existing connections keep the certificate that they started with.

        Raises:
            RelayConfigError: the new files cannot be used; the old certificate stays in use.
        """
        stamps = self._look()
        if stamps == self._stamps:
            return False
        self._context = self._load()
        self._stamps = stamps
        return True

    def use(self, other: TlsFiles) -> bool:
        """Use other files, which have been read already; return whether that changes anything.

        Existing connections keep the certificate that they started with.
        """
        before = (self.certificate, self.key, self._stamps)
        self.certificate, self.key = other.certificate, other.key
        self._stamps = other._stamps
        if before == (self.certificate, self.key, self._stamps):
            return False
        self._context = other._context
        return True

    def _load(self) -> SSL.Context:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_mode(_MODE_RELEASE_BUFFERS)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        try:
            context.use_certificate_chain_file(str(self.certificate))
            context.use_privatekey_file(str(self.key))
            context.check_privatekey()
        except (SSL.Error, crypto.Error, OSError) as error:
            raise RelayConfigError(
                f"{self.certificate} and {self.key} are not a certificate chain with its key: "
                f"{_words(error)}",
                hint="both are PEM files; the server's own certificate comes first in its file",
            ) from None
        return context


def _words(error: BaseException) -> str:
    """Return what OpenSSL says about an error; the first entry is closest to the cause."""
    details = error.args[0] if error.args else None
    if isinstance(details, list) and details and isinstance(details[0], tuple):
        return str(details[0][-1])
    return str(error) or type(error).__name__


class TlsPipe:
    """The server's end of one TLS connection, without a socket.

    Args:
        files: the certificate.
    """

    __slots__ = ("_connection", "_established")

    def __init__(self, files: TlsFiles) -> None:
        self._connection = SSL.Connection(files.context, None)
        self._connection.set_accept_state()
        self._established = False

    def feed(self, data: memoryview) -> None:
        """Take bytes from the network.

        Raises:
            TlsError: they are not TLS.
        """
        try:
            while data:
                data = data[self._connection.bio_write(bytes(data)) :]
            if not self._established:
                self._connection.do_handshake()
                self._established = True
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            raise TlsError(f"the TLS handshake failed: {_words(error)}") from None

    def read_into(self, buffer: memoryview) -> int:
        """Decrypt what has arrived into `buffer`; return how many bytes, 0 when there are none.

        Raises:
            TlsError: the bytes are not TLS, or the peer has closed.
        """
        if not self._established:
            return 0
        total = 0
        size = len(buffer)
        try:
            while total < size:
                total += self._connection.recv_into(buffer[total:])
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            if not total:
                raise TlsError("the peer closed its TLS connection") from None
        except SSL.Error as error:
            if not total:
                raise TlsError(f"TLS failed: {_words(error)}") from None
        return total

    def write(self, data: bytes) -> None:
        """Encrypt.

        Raises:
            TlsError: the connection cannot send any more.
        """
        view = memoryview(data)
        try:
            while view:
                view = view[self._connection.send(view) :]
        except SSL.Error as error:
            raise TlsError(f"TLS failed: {_words(error)}") from None

    def shut_down(self) -> None:
        """Say goodbye at the level of TLS, if the handshake got so far."""
        if not self._established:
            return
        try:
            self._connection.shutdown()
        except SSL.Error:
            # The peer broke the connection first; there is nobody to say goodbye to.
            return

    def take_output(self) -> bytes:
        """Take the bytes for the network."""
        parts: list[bytes] = []
        try:
            while True:
                parts.append(self._connection.bio_read(READ_BYTES))
        except SSL.WantReadError:
            return b"".join(parts)

    def export(self, client_key: bytes) -> bytes | None:
        """Export keying material for a client's key; None before the handshake is complete."""
        if not self._established:
            return None
        return self._connection.export_keying_material(EXPORTER_LABEL, EXPORTER_BYTES, client_key)
