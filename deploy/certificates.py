"""A certificate for the servers of one stack, and the authority that it is of: made anew at each start.

Whoever holds the certificate's key is one of the stack's own servers; both lie in the stack's private folder. The
authority's key is written nowhere, so nobody can make a second certificate.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.directory_lock import write_private

AUTHORITY, CERTIFICATE, KEY = "authority.pem", "server.pem", "server.key"
#: A stack may be up for years, and a clock may be wrong by a day.
_LASTS, _BEFORE = timedelta(days=3650), timedelta(days=1)
_HOST = ipaddress.IPv4Address("127.0.0.1")


def write_certificates(directory: Path) -> None:
    """Write an authority's certificate, and a certificate of it with its key, for 127.0.0.1, servers and clients alike.

    Args:
        directory: Gets `authority.pem`, `server.pem` and `server.key`, readable for their owner alone.
    """
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = (
        _builder("gradcam-queue stack authority", "gradcam-queue stack authority", authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        _builder("gradcam-queue stack", "gradcam-queue stack authority", key)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(_HOST)]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    key_text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for name, content in (
        (AUTHORITY, authority.public_bytes(serialization.Encoding.PEM)),
        (CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM)),
        (KEY, key_text),
    ):
        write_private(directory / name, content.decode())


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]),
        key.public_key(),
        x509.random_serial_number(),
        now - _BEFORE,
        now + _LASTS,
    )
