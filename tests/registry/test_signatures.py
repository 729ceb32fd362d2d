"""Signatures: the owner's is believed, nobody else's, and no module changes by being signed."""

import dataclasses
import json
import os
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ff_flower.errors import ConfigError, VerificationError
from ff_flower.registry import (
    ModuleRegistry,
    SignaturePolicy,
    module_id,
    read_private_key,
    sign_module,
    signatures,
    write_key_pair,
)
from ff_flower.registry.signatures import signed_message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with key pairs of the owners 3 and 4."""
    folder = tmp_path_factory.mktemp("keys")
    for owner in ("3", "4"):
        write_key_pair(owner, folder)
    return folder


@pytest.fixture(scope="module")
def policies(folder):
    """Return the folder's policies, by whether signatures are required."""
    return {required: SignaturePolicy.read(folder, required) for required in (False, True)}


def sign(folder, owner, digest):
    """Return the owner's signature of a module id."""
    return sign_module(read_private_key(folder / f"{owner}.key"), digest)


def refused(policy, owner, digest, signature):
    """Return the rule by which a policy refuses a signature."""
    with pytest.raises(VerificationError) as caught:
        policy.check(owner, digest, signature)
    return caught.value.rule


DIGEST, OTHER = "ab" * 32, "cd" * 32


@pytest.mark.parametrize("required", [False, True])
def test_the_owner_signs_its_modules_and_nobody_else_does(folder, policies, required):
    """The owner's signature of this module is verified; another owner's, of another module, or of another length is refused."""
    policy, own = policies[required], sign(folder, "3", DIGEST)
    assert policy.check("3", DIGEST, own) is True
    assert refused(policy, "4", DIGEST, own) == "signature-owner"
    assert refused(policy, "3", OTHER, own) == "signature"
    assert refused(policy, "3", DIGEST, own[:-1]) == refused(policy, "3", DIGEST, b"") == "signature"


def test_the_owners_key_alone_is_tried_for_its_signature(folder, policies, monkeypatch):
    """A module that its owner signed costs one verification, however many owners there are."""
    tried, verify = [], signatures._is_signed
    monkeypatch.setattr(signatures, "_is_signed", lambda key, *rest: tried.append(key) or verify(key, *rest))
    policies[True].check("4", DIGEST, sign(folder, "4", DIGEST))
    assert tried == [policies[True].keys["4"]]


def test_what_is_required_and_what_is_not(folder, policies):
    """Only where signatures are required are a missing one and one of an unknown owner refused."""
    unknown = bytes(64)
    assert policies[False].check("3", DIGEST, None) is policies[False].check("5", DIGEST, unknown) is False
    assert refused(policies[True], "3", DIGEST, None) == "signature-missing"
    assert refused(policies[True], "5", DIGEST, unknown) == "signature-owner"
    assert SignaturePolicy().check("3", DIGEST, unknown) is False


@settings(max_examples=60, deadline=None)
@given(bit=st.integers(0, 511))
def test_every_changed_bit_is_noticed(folder, policies, bit):
    """A signature with one bit changed is no signature."""
    changed = bytearray(sign(folder, "3", DIGEST))
    changed[bit // 8] ^= 1 << bit % 8
    assert refused(policies[True], "3", DIGEST, bytes(changed)) == "signature"


def test_a_signature_of_the_bare_digest_is_none(folder, policies):
    """What is signed begins with the domain's name, so that a signature made for anything else cannot be passed off."""
    key = read_private_key(folder / "3.key")
    assert signed_message(DIGEST) == b"ff-flower module v1\0" + b"\xab" * 32
    assert refused(policies[True], "3", DIGEST, key.sign(b"\xab" * 32)) == "signature"


def test_openssl_verifies_it(folder, tmp_path):
    """Another program verifies a signature with nothing but the public key and the documented message."""
    (tmp_path / "message").write_bytes(signed_message(DIGEST))
    (tmp_path / "signature").write_bytes(sign(folder, "3", DIGEST))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-rawin", "-inkey", folder / "3.pub"]
    try:
        told = subprocess.run(
            [*command, "-in", tmp_path / "message", "-sigfile", tmp_path / "signature"], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert "Verified Successfully" in told.stdout


def test_keys_are_written_for_their_owner_alone(tmp_path):
    """A private key is readable by its owner alone, and no key is ever overwritten."""
    private, public = write_key_pair("site-1", tmp_path / "made")
    assert private.stat().st_mode & 0o777 == 0o600
    before = private.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        write_key_pair("site-1", tmp_path / "made")
    private.unlink()
    with pytest.raises(ConfigError, match=r"site-1\.pub: is there already"):
        write_key_pair("site-1", tmp_path / "made")
    assert b"PRIVATE" in before and public.exists()


@pytest.mark.parametrize("owner", ["", "../3", ".hidden", "a/b", "a b", "x" * 65, "sit\u00e9"])
def test_names_that_own_nothing(tmp_path, owner):
    """A key is made only for a name that a manifest may have."""
    with pytest.raises(ConfigError, match="an owner's name has"):
        write_key_pair(owner, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def pem(key):
    """Return a private key as the file of a careless owner."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


WRONG = {
    "empty": b"",
    "text": b"no key at all",
    "large": b"-" * 20_000,
    "encrypted": pem(ed25519.Ed25519PrivateKey.generate()),
    "curve": ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_are_no_keys(tmp_path, name):
    """A file that holds no plain Ed25519 key is refused with its path, as a private and as a public key."""
    private, public = tmp_path / "3.key", tmp_path / "3.pub"
    for path in (private, public):
        path.write_bytes(WRONG[name])
        path.chmod(0o600)
    for read in (lambda: read_private_key(private), lambda: SignaturePolicy.read(tmp_path, required=False)):
        with pytest.raises(ConfigError, match=r"3\.(key|pub): (holds no|is not an Ed25519|more than)"):
            read()


def test_another_kind_of_private_key(tmp_path):
    """An RSA key is named as what it is not."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (tmp_path / "3.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "3.key").chmod(0o600)
    with pytest.raises(ConfigError, match="is not an Ed25519 key"):
        read_private_key(tmp_path / "3.key")


def test_paths_that_lead_to_no_key(tmp_path, folder):
    """An absent file, a folder, a pipe, and a key that everybody can read are refused with the remedy."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent.key", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="is no file"):
            read_private_key(path)
    private, _ = write_key_pair("9", tmp_path)
    private.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_private_key(private)


def test_folders_of_public_keys(tmp_path, folder):
    """A policy needs a readable folder, a key where one is required, owners' names, and one key per owner."""
    with pytest.raises(ConfigError, match="cannot be read"):
        SignaturePolicy.read(tmp_path / "absent", required=False)
    with pytest.raises(ConfigError, match="without public keys"):
        SignaturePolicy.read("", required=True)
    with pytest.raises(ConfigError, match=r"holds no OWNER\.pub"):
        SignaturePolicy.read(tmp_path, required=True)
    assert SignaturePolicy.read("", required=False) == SignaturePolicy.read(tmp_path, required=False) == SignaturePolicy()
    key = (folder / "3.pub").read_bytes()
    (tmp_path / "a b.pub").write_bytes(key)
    with pytest.raises(ConfigError, match="can be no owner's name"):
        SignaturePolicy.read(tmp_path, required=False)
    (tmp_path / "a b.pub").rename(tmp_path / "a.pub")
    (tmp_path / "b.pub").write_bytes(key)
    with pytest.raises(ConfigError, match="is the key of 'a' too"):
        SignaturePolicy.read(tmp_path, required=False)


def signing(expectation, policy):
    """Return the expectation of a run with this policy."""
    return dataclasses.replace(expectation, signatures=policy)


def test_the_registry_keeps_signatures_beside_the_modules(tmp_path, folder, policies, digits_run, tiny_file):
    """A signature lies beside its module, changes neither its bytes nor its id, and goes when it goes."""
    registry, own = ModuleRegistry(tmp_path), sign(folder, "3", module_id(tiny_file))
    module = registry.add(tiny_file, signing(digits_run, policies[True]), own)
    assert (module.read(), module.module_id) == (tiny_file, module_id(tiny_file))
    again = ModuleRegistry(tmp_path)
    assert module.signature_path == tmp_path / f"{module.module_id}.sig"
    assert again.signatures() == {module.module_id: own} and list(again) == [module]
    again.remove(module.module_id)
    assert list(tmp_path.iterdir()) == []


def test_the_registry_keeps_nothing_of_a_refused_signature(tmp_path, folder, policies, digits_run, tiny_file):
    """A module with a missing, wrong or foreign signature is not kept, nor is the signature."""
    registry, digest = ModuleRegistry(tmp_path), module_id(tiny_file)
    rules = []
    for signature in (None, bytes(64), sign(folder, "4", digest)):
        with pytest.raises(VerificationError) as caught:
            registry.add(tiny_file, signing(digits_run, policies[True]), signature)
        rules.append(caught.value.rule)
    assert rules == ["signature-missing", "signature", "signature-owner"]
    assert list(tmp_path.iterdir()) == []


def test_a_withdrawn_key_sets_its_modules_aside(tmp_path, folder, policies, digits_run, tiny_file):
    """What was registered under a key that is no longer believed goes to quarantine with its signature deleted."""
    registry = ModuleRegistry(tmp_path)
    registry.add(tiny_file, signing(digits_run, policies[True]), sign(folder, "3", module_id(tiny_file)))
    registry.check_signatures(policies[True])
    assert len(registry) == 1
    registry.check_signatures(SignaturePolicy({"4": policies[True].keys["4"]}, required=True))
    assert len(registry) == 0 and [path.name for path in tmp_path.iterdir()] == ["quarantine"]
    (report,) = (tmp_path / "quarantine").glob("*.json")
    assert [refusal["rule"] for refusal in json.loads(report.read_text())] == ["signature-owner"]
