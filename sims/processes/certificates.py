"""Certificates of a SuperLink and keys of SuperNodes, for a consortium that has no certificate authority of its own."""

import datetime
import ipaddress
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ff_flower.config import site_name
from ff_flower.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1")  # the SuperLink's own processes reach it there
AUTHORITY, AUTHORITY_KEY, SERVER, SERVER_KEY = "ca.crt", "ca.key", "server.pem", "server.key"
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")


def make_certificates(folder: Path, hosts: Iterable[str] = (), days: int = 365) -> None:
    """Write a certificate authority, and a certificate of the SuperLink that it signs.

    Parameters
    ----------
    folder : Path
        Takes ``ca.crt``, which every site gets, ``server.pem`` and ``server.key``, which stay at the SuperLink, and ``ca.key``,
        which is needed to sign a next certificate only.
    hosts : iterable of str
        Names and addresses by which sites reach the SuperLink; ``localhost`` and ``127.0.0.1`` are always among them.
    days : int
        How long both hold.

    Raises
    ------
    ConfigError
        When a host is neither a name nor an address, one of the files is there already, or the folder cannot be written.
    """
    _refuse_present(*(folder / name for name in (AUTHORITY, AUTHORITY_KEY, SERVER, SERVER_KEY)))
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ff-flower consortium")])
    names = [_general_name(host) for host in dict.fromkeys((*hosts, *LOOPBACK))]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SuperLink")])
    authority = (
        _builder(issuer, issuer, authority_key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        _builder(subject, issuer, server_key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    _write(folder / AUTHORITY, authority.public_bytes(pem))
    _write(folder / AUTHORITY_KEY, _private(authority_key, serialization.PrivateFormat.PKCS8), secret=True)
    _write(folder / SERVER, server.public_bytes(pem))
    _write(folder / SERVER_KEY, _private(server_key, serialization.PrivateFormat.PKCS8), secret=True)


def make_node_keys(folder: Path, sites: Sequence[str]) -> list[Path]:
    """Write the key pair by which each site's SuperNode authenticates, ``NAME`` and ``NAME.pub`` in OpenSSH's format.

    Returns
    -------
    list of Path
        The private keys; each should be made, or brought, to its site alone.

    Raises
    ------
    ConfigError
        When a name cannot be a site's, a file is there already, or the folder cannot be written.
    """
    paths, names = [], [site_name(site) for site in sites]
    for name in names:
        _refuse_present(folder / name, folder / f"{name}.pub")  # a new half of an old pair fits nothing
    for name in names:
        key = ec.generate_private_key(ec.SECP384R1())
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        _write(folder / f"{name}.pub", public + b"\n")
        paths.append(_write(folder / name, _private(key, serialization.PrivateFormat.OpenSSH), secret=True))
    return paths


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            rule = "must be an address, or a name of letters a-z, digits, dots, hyphens and underscores"
            remedy = "leave out the port, and write a name with other letters in its ASCII form (xn--...)"
            raise ConfigError(f"host {host!r}: {rule}; {remedy}") from None
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _refuse_present(*paths: Path) -> None:
    """Refuse to begin where one file of several that belong together is there already."""
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path}: is there already, and is not overwritten; remove it or name another folder")


def _write(path: Path, data: bytes, *, secret: bool = False) -> Path:
    """Write a file that is not there yet; a secret one for its owner's eyes alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600 if secret else 0o644, exist_ok=False)
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another folder") from error
    return path
