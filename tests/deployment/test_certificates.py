"""Certificates and keys that the command makes are those that TLS and Flower want, and are never overwritten."""

import ipaddress
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from typer.testing import CliRunner

from ff_flower.errors import ConfigError
from sims.cli import app
from sims.processes.certificates import make_certificates, make_node_keys


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    """Shake hands in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make certificates for a host with a name and one with an address."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, ["superlink.example.org", "192.0.2.7"], days=30)
    return folder


def contexts(folder, authority):
    """Return the client's context, which trusts an authority, and the server's."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    return ssl.create_default_context(cafile=str(authority / "ca.crt")), server


@pytest.mark.parametrize("host", ["superlink.example.org", "192.0.2.7", "localhost", "127.0.0.1"])
def test_the_certificate_holds_for_every_name_of_the_superlink(folder, host):
    """A client that trusts the authority accepts the SuperLink under each name and address, and under loopback's."""
    handshake(*contexts(folder, folder), host)


def test_another_name_or_authority_is_not_accepted(folder, tmp_path):
    """A host that is not in the certificate, and an authority that did not sign it, fail the handshake."""
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(*contexts(folder, folder), "other.example.org")
    make_certificates(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(*contexts(folder, tmp_path), "localhost")


def test_secrets_are_for_their_owner_alone(folder, tmp_path):
    """Private keys have mode 0600, and the certificate names what was asked for."""
    private = [folder / "ca.key", folder / "server.key", *make_node_keys(tmp_path, ["Clinic A"])]
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("192.0.2.7"), ipaddress.ip_address("127.0.0.1")]


def test_a_nodes_two_keys_belong_together(tmp_path):
    """What is registered is the public half of what the SuperNode holds, both as OpenSSH writes them."""
    (path,) = make_node_keys(tmp_path, ["Clinic A"])
    assert path.name == "Clinic-A"
    private = load_ssh_private_key(path.read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "Clinic-A.pub").read_bytes())
    assert private.public_key().public_numbers() == public.public_numbers()


@pytest.mark.parametrize("left", ["north", "north.pub"])
def test_no_half_of_a_pair_is_made_anew(left, tmp_path):
    """Where one file of a pair, or of a SuperLink's four, is there, no other is written: it would not belong to it."""
    make_node_keys(tmp_path, ["north"])
    make_certificates(tmp_path / "link")
    gone = ({"north", "north.pub"} - {left}).pop()
    (tmp_path / gone).unlink()
    (tmp_path / "link" / "ca.crt").unlink()
    with pytest.raises(ConfigError, match="is there already"):
        make_node_keys(tmp_path, ["south", "north"])
    with pytest.raises(ConfigError, match="is there already"):
        make_certificates(tmp_path / "link")
    assert not (tmp_path / gone).exists() and not (tmp_path / "south").exists() and not (tmp_path / "link" / "ca.crt").exists()


def test_nothing_is_overwritten(folder, tmp_path):
    """A file that is there already stays, and the error names it."""
    before = (folder / "ca.crt").read_bytes()
    with pytest.raises(ConfigError, match=r"ca\.crt: is there already, and is not overwritten"):
        make_certificates(folder)
    assert (folder / "ca.crt").read_bytes() == before
    with pytest.raises(ConfigError, match=r"must be 1 to 64 of A-Z"):
        make_node_keys(tmp_path, ["../north"])


def test_the_command_says_what_each_file_is_for(tmp_path):
    """With hosts it makes certificates, with sites their keys, and with sites alone no certificates."""
    runner, folder = CliRunner(), tmp_path / "made"
    made = runner.invoke(app, ["certificates", str(folder), "--host", "superlink.example.org", "--site", "north"])
    assert made.exit_code == 0 and "--root-certificates" in made.output and "north.pub" in made.output
    assert runner.invoke(app, ["certificates", str(tmp_path / "keys"), "--site", "south"]).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["south", "south.pub"]
    assert runner.invoke(app, ["certificates", str(folder)]).exit_code == 2


@pytest.mark.parametrize(
    "host",
    [
        "superlink.example.org:8000",
        "192.0.2.7:8000",
        "klinik-münchen.example",
        "https://superlink",
        "",
        "a b",
        "192.0.2",
        "-a.org",
    ],
)
def test_a_host_that_no_site_can_verify_is_refused(host, tmp_path):
    """What is neither an address nor a name in ASCII, a port among it, is refused with the remedy, and nothing is written."""
    with pytest.raises(ConfigError, match=r"must be an address, or a name .*; leave out the port, .* \(xn--\.\.\.\)"):
        make_certificates(tmp_path / "made", [host])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("host", ["*.example.org", "xn--klinik-mnchen-3ob.example", "superlink", "2001:db8::1", "h4.7up.example"])
def test_names_and_addresses_are_taken(host, tmp_path):
    """A name in its ASCII form, one for a whole domain, and an address of either kind stand in the certificate."""
    make_certificates(tmp_path, [host])
    certificate = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert host in {str(name.value) for name in names}


def test_no_certificate_outlives_the_calendar(tmp_path):
    """More than a hundred years of days are refused as an option."""
    runner = CliRunner()
    assert runner.invoke(app, ["certificates", str(tmp_path / "a"), "--days", "36500"]).exit_code == 0
    refused = runner.invoke(app, ["certificates", str(tmp_path / "b"), "--days", "99999999"])
    assert refused.exit_code == 2 and not (tmp_path / "b").exists()
