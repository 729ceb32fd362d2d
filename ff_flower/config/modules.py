"""Specs of the generative modules: the sizes of networks, and each kind's training and sampling."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..errors import ConfigError
from .base import Count, Fraction, NonNegative, Positive, Spec

Kind = Literal["edm", "flow", "vae", "gaussian_mixture"]
ImageShape = tuple[int, int, int]
HEADS = 4  # of attention


class KindSpec(Spec):
    """Base of the kinds' specs."""

    def resolved(self, image_shape: ImageShape) -> Self:
        """Return the spec with every value that follows from (C, H, W) and a size put in place of its placeholder.

        Raises
        ------
        ConfigError
            For images larger than the size can take.
        """
        return self


class TrainingSpec(KindSpec):
    """Training of a network by AdamW; images shown, the budget, are ``steps`` times ``batch_size``.

    Attributes
    ----------
    steps, batch_size : int
        Optimizer steps and images per step.
    learning_rate : float
        Peak of the learning rate, which warms up and falls by a half cosine.
    ema : float
        The moving average of the weights takes in a share 1 / (1 + ema t) of them at step t: it looks back over ema t steps.
    """

    steps: Count = 250
    batch_size: Count = 64
    learning_rate: Positive = 3e-3
    ema: Fraction = 0.1


@dataclass(frozen=True)
class Size:
    """What the name of a size stands for.

    Attributes
    ----------
    channels, depth, levels : int
        Width of the U-Net's upper level, its residual blocks per stage, and its number of resolutions.
    rank : int
        Directions of the Gaussian that the network corrects.
    latent : int
        Numbers from which a decoder makes an image.
    grid : int
        Largest side of the upper resolution: pixels are folded into channels until it is reached.
    largest : int
        Largest side of an image.
    """

    channels: int
    depth: int
    levels: int
    rank: int
    latent: int
    grid: int
    largest: int


SIZES = {
    "tiny": Size(channels=16, depth=1, levels=2, rank=32, latent=32, grid=16, largest=16),
    "small": Size(channels=32, depth=1, levels=2, rank=128, latent=64, grid=16, largest=32),
    "base": Size(channels=48, depth=2, levels=3, rank=128, latent=64, grid=32, largest=64),
    "large": Size(channels=64, depth=2, levels=4, rank=64, latent=128, grid=64, largest=128),
}


class NetworkSpec(TrainingSpec):
    """Network and training that ``edm``, ``flow`` and ``vae`` share.

    Attributes
    ----------
    size : str
        ``tiny`` (8 to 16 pixels, CPU), ``small`` (to 32, CPU in minutes), ``base`` (to 64, GPU), ``large`` (to 128, GPU), or
        ``auto``: the smallest of these that takes the images.
    channels, depth, levels : int
        Width of the network's upper level (multiple of 8), residual blocks per stage, and resolutions; 0 as ``size`` says.
    patch : int
        Side of the pixel blocks folded into channels before the first convolution; 0 as ``size`` and image demand.
    symmetry : str
        Under what the class's images may be turned without becoming improbable: ``none``, ``mirror`` (left and right), or
        ``dihedral`` (all eight symmetries of the square, as for cells).
    """

    size: Literal["auto", "tiny", "small", "base", "large"] = "auto"
    channels: int = Field(default=0, ge=0, le=512, multiple_of=8)
    depth: int = Field(default=0, ge=0, le=8)
    levels: int = Field(default=0, ge=0, le=4)
    patch: Literal[0, 1, 2, 4, 8] = 0
    symmetry: Literal["none", "mirror", "dihedral"] = "none"

    def resolved(self, image_shape: ImageShape) -> Self:
        """Return the spec with a size in the place of ``auto``, and its numbers where none are given."""
        side = max(image_shape[1:])
        fitting = next((name for name, size in SIZES.items() if side <= size.largest), "large")
        name = fitting if self.size == "auto" else self.size
        size = SIZES[name]
        if side > size.largest:
            remedy = f"set its size to 'auto' or {fitting!r}, or" if side <= SIZES[fitting].largest else "set"
            raise ConfigError(
                f"images of {image_shape[1]} x {image_shape[2]} pixels: a network of size {name!r} takes up to "
                f"{size.largest}; {remedy} data.size to {size.largest} or less"
            )
        patch = next(patch for patch in (1, 2, 4, 8) if side <= patch * size.grid)
        return self.model_copy(
            update={
                "size": name,
                "channels": self.channels or size.channels,
                "depth": self.depth or size.depth,
                "levels": self.levels or size.levels,
                "patch": self.patch or patch,
            }
        )

    def activations(self, image_shape: ImageShape) -> int:
        """Return about how many numbers the network holds at a time for one image, once it is `resolved`."""
        height, width = (math.ceil(side / self.patch) for side in image_shape[1:])
        convolved = height * width * self.channels * (2 * self.depth + 4)  # lower levels have a quarter of the grid
        attended = max(1, self.levels - 2)  # the highest of the levels that attend
        positions = math.ceil(height / 2**attended) * math.ceil(width / 2**attended) if self.levels > 1 else 0
        return convolved + HEADS * positions**2


class UNetSpec(NetworkSpec):
    """The first guess and the augmentation that ``edm`` and ``flow`` share.

    Attributes
    ----------
    rank : int
        Directions of the Gaussian that the network corrects; 0 for independent pixels, -1 as ``size`` says.
    augmentation : float
        Chance of each non-leaking augmentation, of which the network is told (EDM, appendix F.2); samples are made as of
        images that were not augmented.
    """

    rank: int = Field(default=-1, ge=-1, le=1024)
    augmentation: Fraction = 0.0

    def resolved(self, image_shape: ImageShape) -> Self:
        """Return the spec with the numbers that ``size`` stands for, as far as none are given."""
        spec = super().resolved(image_shape)
        return spec if self.rank >= 0 else spec.model_copy(update={"rank": SIZES[spec.size].rank})


class EDMSpec(UNetSpec):
    """Noise levels and sampler of the ``edm`` module (Karras et al. 2022, arXiv 2206.00364).

    Attributes
    ----------
    p_mean, p_std : float
        Mean and standard deviation of ln(sigma) in training (EDM, table 1), sigma in units of the class's deviation.
    sigma_min, sigma_max, rho : float
        Ends and curvature of the sampling schedule (EDM, equation 5), in the same units.
    sampler : str
        ``heun`` (EDM, algorithm 1) or ``dpmpp-2m`` (DPM-Solver++(2M), Lu et al. 2022, arXiv 2211.01095).
    evaluations : int
        Network evaluations per sample.
    """

    p_mean: float = Field(default=-0.4, ge=-10, le=10)
    p_std: Positive = 1.4
    sigma_min: float = Field(default=0.05, ge=1e-6, le=1e6)
    sigma_max: float = Field(default=10.0, ge=1e-6, le=1e6)
    rho: float = Field(default=7.0, ge=0.1, le=100)
    sampler: Literal["heun", "dpmpp-2m"] = "dpmpp-2m"
    evaluations: int = Field(default=6, ge=1, le=1000)

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"a schedule that falls: sigma-min {self.sigma_min} below sigma-max {self.sigma_max}")
        return self


class FlowSpec(UNetSpec):
    """Times and sampler of the ``flow`` module (rectified flow: Liu et al. 2022, arXiv 2209.03003).

    Attributes
    ----------
    t_mean, t_std : float
        Training times are 1 / (1 + exp(-z)) with z normal of this mean and deviation (Esser et al. 2024, arXiv 2403.03206).
    sampler : str
        ``midpoint`` (two evaluations per step) or ``euler`` (one).
    evaluations : int
        Network evaluations per sample.
    """

    t_mean: float = Field(default=0.0, ge=-10, le=10)
    t_std: Positive = 1.0
    sampler: Literal["midpoint", "euler"] = "midpoint"
    evaluations: int = Field(default=12, ge=1, le=1000)


class VAESpec(NetworkSpec):
    """Loss, latent density and texture of the ``vae`` module (Kingma & Welling 2013, arXiv 1312.6114).

    Attributes
    ----------
    latent : int
        Numbers that the decoder turns into an image; 0 as ``size`` says.
    beta : float
        Weight of the Kullback-Leibler divergence in the loss; 1 gives the evidence lower bound.
    mixtures : int
        Largest number of Gaussians in the density of the latent numbers; small classes get fewer, one per
        ``images_per_mixture`` images.
    images_per_mixture : int
        Images needed for each Gaussian.
    regularization : float
        Added to the diagonals of the Gaussians' covariances.
    texture : float
        Share of the deviation that the decoder leaves, which comes back as correlated noise; 0 leaves samples smooth.
    rank : int
        Directions in which that noise is correlated.
    """

    latent: int = Field(default=0, ge=0, le=1024)
    beta: NonNegative = 1.0
    mixtures: Count = 8
    images_per_mixture: Count = 100
    regularization: Positive = 1e-3
    texture: NonNegative = 0.0
    rank: int = Field(default=128, ge=0, le=1024)

    def resolved(self, image_shape: ImageShape) -> Self:
        """Return the spec with the numbers that ``size`` stands for, as far as none are given."""
        spec = super().resolved(image_shape)
        return spec if self.latent else spec.model_copy(update={"latent": SIZES[spec.size].latent})


class GaussianMixtureSpec(KindSpec):
    """PCA to ``components`` dimensions, then a mixture of at most ``mixtures`` Gaussians with full covariances.

    Attributes
    ----------
    components : int
        Largest number of principal components.
    mixtures : int
        Largest number of Gaussians; small classes get fewer, one per ``images_per_mixture`` images.
    images_per_mixture : int
        Images needed for each Gaussian.
    regularization : float
        Added to the covariances' diagonals, in units of whitened pixels.
    residual_noise : bool
        Whether the variance that PCA drops comes back as independent pixel noise.
    """

    components: Count = 32
    mixtures: Count = 8
    images_per_mixture: Count = 20
    regularization: Positive = 1e-3
    residual_noise: bool = False


class ModuleSpec(Spec):
    """The generative module that a node fits per local class.

    Attributes
    ----------
    kind : str
        ``edm``, ``flow``, ``vae`` or ``gaussian_mixture``; a node may choose another by ``module.kind`` in its node-config.
    min_images : int
        A class with fewer images is declined.
    network_images : int
        A class with fewer images gets a ``gaussian_mixture`` in the place of a network; its manifest says so.
    holdout : float
        Share of a class's images that is not trained on and tells which step's weights are kept; 0 keeps the last.
    max_seconds : float
        Longest training of one module: the schedule is shortened to fit; 0 sets no limit. What is learned in a given time
        differs from run to run, what is learned in given ``steps`` does not.
    checkpoint_seconds : float
        Pause between the checkpoints from which an interrupted fit continues; 0 writes none, and keeps no finished fit either.
    compile_on_cpu : bool
        Whether the training of networks is compiled (``torch.compile``) on a CPU as it always is on a GPU. It needs a C++
        compiler and, the first time on a machine, up to minutes; then a step takes about seven tenths of the time.
    wire_dtype : str
        Type of the weights in the module file.
    """

    kind: Kind = "edm"
    min_images: Count = 10
    network_images: Count = 40
    holdout: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    max_seconds: NonNegative = 0.0
    checkpoint_seconds: NonNegative = 60.0
    compile_on_cpu: bool = False
    wire_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    edm: EDMSpec = EDMSpec()
    flow: FlowSpec = FlowSpec()
    vae: VAESpec = VAESpec()
    gaussian_mixture: GaussianMixtureSpec = GaussianMixtureSpec()

    def of_kind(self, kind: str = "") -> KindSpec:
        """Return the settings of one kind alone, by default the chosen one."""
        chosen: KindSpec = getattr(self, kind or self.kind)
        return chosen
