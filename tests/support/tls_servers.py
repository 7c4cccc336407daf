"""Servers that speak TLS, with certificates of an authority that nobody else knows.

SeaweedFS speaks it itself. The Valkey of the wheel is built without: a proxy of this process ends the TLS before it, as
stunnel would. No real Redis with TLS is among the packages.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import s3_servers
import trustme

from deploy.servers import SeaweedFS
from deploy.stack import Stack


@dataclass(frozen=True)
class Certificates:
    """An authority, a server's certificate of it, and another authority, as PEM files."""

    authority: Path
    server: Path
    #: A certificate for another host, of the same authority.
    elsewhere: Path
    client: Path
    other_authority: Path

    @classmethod
    def make(cls, directory: Path) -> Certificates:
        """Make them; the server is called localhost and 127.0.0.1."""
        authority, other = trustme.CA(), trustme.CA()
        made = cls(*(directory / f"{name}.pem" for name in ("authority", "server", "elsewhere", "client", "other")))
        authority.cert_pem.write_to_path(str(made.authority))
        other.cert_pem.write_to_path(str(made.other_authority))
        for path, names in (
            (made.server, ("localhost", "127.0.0.1")),
            (made.elsewhere, ("elsewhere.example",)),
            (made.client, ("a-client.example",)),
        ):
            authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(str(path))
        return made


class TlsProxy:
    """Ends TLS on a loopback port, and passes on what is in it.

    Args:
        port: Where to.
        certificate: A PEM file with the server's key and certificate.
        clients: An authority whose certificate each client must have.
        address: Where it listens.
    """

    def __init__(
        self, port: int, certificate: Path, clients: Path | None = None, *, address: str = "127.0.0.1"
    ) -> None:
        self._target = port
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate)
        if clients is not None:
            self._context.load_verify_locations(clients)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._server = socket.create_server((address, 0))
        self.port = int(self._server.getsockname()[1])
        #: Connections whose TLS was agreed on.
        self.connections = 0

    def __enter__(self) -> TlsProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), suppress(OSError):  # a client that hangs up, or whose TLS we do not like
            client.settimeout(30)
            with self._context.wrap_socket(client, server_side=True) as secure:
                self.connections += 1
                secure.settimeout(None)
                with socket.create_connection(("127.0.0.1", self._target)) as target:
                    # An SSL object is for one thread at a time: each side has a short wait.
                    lock = threading.Lock()
                    back = threading.Thread(target=_pass_back, args=(target, secure, lock), daemon=True)
                    back.start()
                    _pass_on(secure, target, lock)
                    with suppress(OSError):
                        target.shutdown(socket.SHUT_RDWR)
                    back.join()


def _pass_on(secure: ssl.SSLSocket, target: socket.socket, lock: threading.Lock) -> None:
    import select

    while True:
        if not secure.pending():
            select.select([secure], [], [])
        with lock:
            secure.setblocking(False)
            try:
                data = secure.recv(65536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                continue
            finally:
                secure.setblocking(True)
        if not data:
            return
        target.sendall(data)


def _pass_back(target: socket.socket, secure: ssl.SSLSocket, lock: threading.Lock) -> None:
    with suppress(OSError):
        while data := target.recv(65536):
            with lock:
                secure.sendall(data)
        secure.shutdown(socket.SHUT_RDWR)


class SecureSeaweedFS(SeaweedFS):
    """SeaweedFS whose S3 speaks TLS alone."""

    certificates: Certificates

    @property
    def endpoint_url(self) -> str:
        return f"https://localhost:{self.ports['s3.port']}"

    def _options(self) -> list[tuple[str, str | int]]:
        own = str(self.certificates.server)
        return [*super()._options(), ("s3.cert.file", own), ("s3.key.file", own)]


@contextmanager
def secure_stack(directory: Path, certificates: Certificates) -> Iterator[Stack]:
    """Valkey as always, and S3 over TLS; `AWS_CA_BUNDLE` must name the authority."""
    stack = Stack(directory, workers=0, bucket=s3_servers.BUCKET)
    stack.s3 = s3_servers.make(SecureSeaweedFS, directory / "secure")
    stack.s3.certificates = certificates  # type: ignore[attr-defined]
    with stack:
        yield stack


def rediss(
    port: int, parameters: Mapping[str, object], *, user: str = "", password: str, host: str = "localhost"
) -> str:
    """The address of a Redis behind a proxy."""
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"rediss://{user}:{password}@{host}:{port}/0?{query}"
