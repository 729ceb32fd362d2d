"""Which modules a run believes."""

from typing import Self

from pydantic import model_validator

from .base import Spec


class TrustSpec(Spec):
    """What is asked of modules before they are used.

    Attributes
    ----------
    require_signature : bool
        Whether every module must carry its owner's signature; one that comes unasked is checked all the same, where the owner's
        public key is known.
    public_keys : str
        Folder of ``OWNER.pub`` files; a node may name its own by ``public-keys`` in its node-config, which counts there.
    """

    require_signature: bool = False
    public_keys: str = ""

    @model_validator(mode="after")
    def _checkable(self) -> Self:
        if self.require_signature and not self.public_keys:
            raise ValueError("given with trust.public-keys, a folder of OWNER.pub files: without keys no signature can be checked")
        return self
