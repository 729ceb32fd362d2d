"""Module files and the folder that keeps them: written canonically, verified before use, found by content."""

from .expectation import Expectation
from .manifest import ModuleManifest
from .registry import ModuleRegistry, Refusal, RegisteredModule, read_refusals, registry_order
from .serialization import ModuleLimits, decode_module, encode_module, module_id
from .signatures import SignaturePolicy, read_private_key, sign_module, write_key_pair

__all__ = [
    "Expectation",
    "ModuleLimits",
    "ModuleManifest",
    "ModuleRegistry",
    "Refusal",
    "RegisteredModule",
    "SignaturePolicy",
    "decode_module",
    "encode_module",
    "module_id",
    "read_private_key",
    "read_refusals",
    "registry_order",
    "sign_module",
    "write_key_pair",
]
