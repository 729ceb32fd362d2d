r"""Ed25519 signatures of module files, detached: an owner vouches for its module, and the module's bytes stay as they are.

What is signed is ``b"ff-flower module v1\0"`` followed by the 32 bytes of the file's SHA-256, so that a signature made for
anything else is none of a module, and a module's signature is none of anything else.

::

    NAME.key   private key, PEM (PKCS #8, not encrypted), readable by its owner alone; never leaves the node
    NAME.pub   public key, PEM (SubjectPublicKeyInfo); NAME is the owner that modules name
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from ..config import OWNER
from ..errors import ConfigError, VerificationError
from ..machine import path_of

DOMAIN = b"ff-flower module v1\0"
SIGNATURE_BYTES = 64
MAX_KEY_BYTES = 16 * 2**10


@dataclass(frozen=True)
class SignaturePolicy:
    """Whose signatures are believed, and whether a module may come without one.

    Attributes
    ----------
    keys : mapping from str to Ed25519PublicKey
        Public keys by owner.
    required : bool
        Whether every module must be signed by its owner. Where it is not, a signature that comes is checked all the same, as far
        as the keys go.
    """

    keys: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)
    required: bool = False

    @classmethod
    def read(cls, folder: str | Path, required: bool) -> "SignaturePolicy":
        """Return the policy of a folder of ``OWNER.pub`` files; an empty name stands for no keys.

        Raises
        ------
        ConfigError
            When the folder or a key cannot be read, a key is none, two owners have the same, or signatures are required of
            nobody.
        """
        if not str(folder):
            if required:
                raise ConfigError(
                    "trust.require-signature without public keys: no signature could be checked; set trust.public-keys "
                    "(at a node: public-keys in its node-config) to a folder of OWNER.pub files, which ff-flower keygen makes"
                )
            return cls()
        keys = read_public_keys(Path(folder))
        if required and not keys:
            raise ConfigError(
                f"{folder}: holds no OWNER.pub file, and signatures are required; put the owners' public keys there"
            )
        return cls(keys, required)

    def check(self, owner: str, module_id: str, signature: bytes | None) -> bool:
        """Compare what came with a module with this policy, and tell whether the owner's signature was verified.

        Parameters
        ----------
        owner : str
            What the module's manifest says.
        module_id : str
            SHA-256 of its file, hexadecimal.
        signature : bytes or None
            What came beside the file.

        Raises
        ------
        VerificationError
            Rule ``signature-missing``: there is none, and one is required. Rule ``signature-owner``: it is another owner's, or it
            is required and no key of this owner is known. Rule ``signature``: it is not of 64 bytes, or not of this module.
        """
        if signature is None:
            if self.required:
                raise VerificationError("signature-missing", f"the module of {owner!r} is not signed; this run requires it")
            return False
        if len(signature) != SIGNATURE_BYTES:
            raise VerificationError("signature", f"{len(signature)} bytes; an Ed25519 signature has {SIGNATURE_BYTES}")
        if owner in self.keys and _is_signed(self.keys[owner], module_id, signature):
            return True
        if signer := next((name for name, key in self.keys.items() if _is_signed(key, module_id, signature)), None):
            raise VerificationError("signature-owner", f"signed by {signer!r}; this is a module of {owner!r}, who must sign it")
        if owner in self.keys:
            raise VerificationError("signature", f"it does not verify with the key of {owner!r} for module {module_id[:12]}...")
        if self.required:
            raise VerificationError("signature-owner", f"no public key of {owner!r}; there are: {', '.join(self.keys)}")
        return False


NO_POLICY = SignaturePolicy()  # any module, signed or not


def signed_message(module_id: str) -> bytes:
    """Return what is signed for a module: the domain's name and the 32 bytes of the file's SHA-256."""
    return DOMAIN + bytes.fromhex(module_id)


def sign_module(key: Ed25519PrivateKey, module_id: str) -> bytes:
    """Return the 64 bytes by which the holder of ``key`` vouches for a module; equal input gives equal bytes."""
    return key.sign(signed_message(module_id))


def write_key_pair(owner: str, folder: Path) -> tuple[Path, Path]:
    """Make a key pair, and return the paths of ``OWNER.key`` (mode 0600) and ``OWNER.pub`` in ``folder``.

    Raises
    ------
    ConfigError
        When ``owner`` cannot own a module, a file of either name is there already, or the folder cannot be written.
    """
    if not OWNER.fullmatch(owner):
        raise ConfigError(f"{owner!r}: an owner's name has 1 to 64 of A-Z a-z 0-9 . _ - and no dot in front")
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{owner}.key", folder / f"{owner}.pub"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if taken := [path for path in (private, public) if path.exists()]:
            raise ConfigError(f"{taken[0]}: is there already, and keys are never overwritten; choose another name or folder")
        descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    except OSError as error:
        raise ConfigError(f"{folder}: keys cannot be written there ({error.strerror}); choose another folder") from error
    return private, public


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Return the private key of a ``NAME.key`` file.

    Raises
    ------
    ConfigError
        When it cannot be read, others than its owner and group can read it, or it holds no plain Ed25519 key.
    """
    data = _read_key_file(path)
    if os.name == "posix" and path.stat().st_mode & stat.S_IROTH:
        raise ConfigError(f"{path}: everybody on this machine can read this private key; run chmod 600 on it")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: holds no private key in plain PEM; make one by ff-flower keygen") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: is not an Ed25519 key; make one by ff-flower keygen")
    return key


def read_public_keys(folder: Path) -> dict[str, Ed25519PublicKey]:
    """Return the public keys of a folder's ``OWNER.pub`` files by owner, sorted; other files are left alone.

    Raises
    ------
    ConfigError
        When the folder or a key cannot be read, a file's name can be no owner's, a key is not Ed25519, or two owners share one.
    """
    try:
        paths = sorted(path for path in path_of(folder).iterdir() if path.suffix == ".pub")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read ({error.strerror}); name a folder of OWNER.pub files") from error
    keys: dict[str, Ed25519PublicKey] = {}
    owners: dict[bytes, str] = {}
    for path in paths:
        if not OWNER.fullmatch(path.stem):
            raise ConfigError(f"{path}: {path.stem!r} can be no owner's name; name the file by the owner that modules name")
        keys[path.stem] = key = _public_key(path)
        first = owners.setdefault(key.public_bytes_raw(), path.stem)
        if first != path.stem:
            raise ConfigError(f"{path}: is the key of {first!r} too, so that each could sign as the other; give each its own")
    return keys


def _public_key(path: Path) -> Ed25519PublicKey:
    data = _read_key_file(path)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: holds no public key in PEM; ff-flower keygen makes one beside the private key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: is not an Ed25519 key; make one by ff-flower keygen")
    return key


def _read_key_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: is no file; name a key file, which ff-flower keygen makes")
        with path.open("rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check its path and permissions") from error
    if len(data) > MAX_KEY_BYTES:
        raise ConfigError(f"{path}: more than {MAX_KEY_BYTES} bytes; no key file is so large")
    return data


def _is_signed(key: Ed25519PublicKey, module_id: str, signature: bytes) -> bool:
    try:
        key.verify(signature, signed_message(module_id))
    except InvalidSignature:
        return False
    return True
