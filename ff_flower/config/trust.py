"""Which modules a run believes."""

from typing import Self

from pydantic import Field, model_validator

from .base import Fraction, NonNegative, Spec

MAX_MODULE_MB = 512  # the largest limit that a run can set


class TrustSpec(Spec):
    """What is asked of modules before they are used.

    Attributes
    ----------
    max_module_mb : int
        Megabytes (of 2**20 bytes) that a module file may have; larger ones are not read.
    probe : int
        Samples of each module that are looked at before it is used, 8 to 512 (networks sample 64 at once); 0 looks at none.
    min_variation : float
        Grey levels, of 255, by which a module's samples must vary: their pixels about the image's mean, and half of them from
        the nearest other one.
    min_correlation : float
        Least correlation of neighbouring pixels within samples; that of noise is 0, -1 accepts any.
    min_difference : float
        Least difference between two labels' samples from the same noise, in units of their spread; a copy has 0.
    require_signature : bool
        Whether every module must carry its owner's signature; one that comes unasked is checked all the same, where the owner's
        public key is known.
    public_keys : str
        Folder of ``OWNER.pub`` files; a node may name its own by ``public-keys`` in its node-config, which counts there.
    """

    max_module_mb: int = Field(default=64, ge=1, le=MAX_MODULE_MB)
    probe: int = Field(default=64, ge=0, le=512)
    min_variation: NonNegative = 2.0
    min_correlation: float = Field(default=0.1, ge=-1, le=1)
    min_difference: Fraction = 0.15
    require_signature: bool = False
    public_keys: str = ""

    @property
    def max_module_bytes(self) -> int:
        """Bytes that a module file may have."""
        return self.max_module_mb * 2**20

    @model_validator(mode="after")
    def _checkable(self) -> Self:
        if 0 < self.probe < 8:
            raise ValueError(f"trust.probe 0, or at least 8 samples, of which something can be said; {self.probe} are too few")
        if self.require_signature and not self.public_keys:
            raise ValueError("given with trust.public-keys, a folder of OWNER.pub files: without keys none can be checked")
        return self
