"""A node's keys: with its own it signs what it sends, with others' it checks what it is sent."""

from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ff_flower.config import RunSpec, Scalar
from ff_flower.errors import ConfigError
from ff_flower.machine import path_of
from ff_flower.registry import SignaturePolicy, read_private_key, sign_module


def signing_key(node_config: Mapping[str, Scalar]) -> Ed25519PrivateKey | None:
    """Return the private key that ``signing-key`` of the node's configuration names; None where it names none.

    A SuperNode that signs is started with ``--node-config "... signing-key='/etc/ff-flower/north.key'"``.

    Raises
    ------
    ConfigError
        When the file cannot be read, or holds no plain Ed25519 key that only its owner and group can read.
    """
    path = _path(node_config, "signing-key")
    return None if path is None else read_private_key(path)


def sign_files(key: Ed25519PrivateKey | None, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the signatures of module files by module_id; none without a key."""
    return {} if key is None else {module_id: sign_module(key, module_id) for module_id in files}


def signature_policy(spec: RunSpec, node_config: Mapping[str, Scalar]) -> SignaturePolicy:
    """Return whose signatures the node believes: the keys of its own folder ``public-keys``, else of the run's.

    The run's folder lies on the server's machine. A node that does not see it checks no signatures, unless the run requires them:
    then it needs a folder of its own.

    Raises
    ------
    ConfigError
        When a folder or key cannot be read, or signatures are required and the node has no keys.
    """
    required = spec.trust.require_signature
    if (own := _path(node_config, "public-keys")) is not None:
        return SignaturePolicy.read(own, required)
    if spec.trust.public_keys and path_of(spec.trust.public_keys).is_dir():
        return SignaturePolicy.read(spec.trust.public_keys, required)
    return SignaturePolicy.read("", required)


def _path(node_config: Mapping[str, Scalar], key: str) -> Path | None:
    value = node_config.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ConfigError(f"node-config: {key} = {value!r}: must be a path in quotes, for example {key}='/etc/ff-flower/keys'")
    return path_of(value)
