"""The ``gaussian_mixture`` module: principal components and a mixture of Gaussians; seconds on a CPU."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from ..config import GaussianMixtureSpec, ImageShape
from ..data.transforms import to_unit
from ..seeding import library_seed
from .base import FitOptions, GenerativeModule, allowed, check_state, not_fitted
from .mixture import GaussianMixtureDensity


class GaussianMixtureModule(GenerativeModule[GaussianMixtureSpec]):
    """PCA to whitened scores, a full-covariance mixture on them, and the linear way back to pixels.

    The state holds ``mean`` (D,), ``basis`` (k, D) that maps scores to pixels, ``residual`` (D,), the standard deviation that
    PCA dropped, and the mixture's ``weights`` (m,), ``means`` (m, k) and lower Cholesky factors ``factors`` (m, k, k).
    """

    kind = "gaussian_mixture"

    def __init__(self, spec: GaussianMixtureSpec, image_shape: ImageShape, device: torch.device | str = "cpu") -> None:
        super().__init__(spec, image_shape, device)
        self._state: dict[str, Tensor] = {}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """One number that chooses the Gaussian, k for its scores and D for the residual."""
        components, pixels = self.state()["basis"].shape
        return (1 + components + pixels * self.spec.residual_noise,)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors named in the class's docstring."""
        if not self._state:
            raise not_fitted(self.kind)
        return dict(self._state)

    @classmethod
    def restore(
        cls,
        spec: GaussianMixtureSpec,
        image_shape: ImageShape,
        state: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
    ) -> Self:
        """Build a fitted module from its tensors; the number of components and Gaussians may be smaller than ``spec``'s."""
        module = cls(spec, image_shape, device)
        pixels = image_shape[0] * image_shape[1] * image_shape[2]
        means = state.get("means", torch.empty(0, 0))
        mixtures, components = means.shape if means.ndim == 2 else (0, 0)
        mixtures, components = max(1, min(mixtures, spec.mixtures)), max(1, min(components, spec.components))
        check_state(state, _shapes(mixtures, components, pixels), cls.kind)
        module._state = {name: tensor.to(module.device, torch.float32) for name, tensor in state.items()}
        return module

    def _fit(self, images: Tensor, seed: int, options: FitOptions) -> None:
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        spec, pixels = self.spec, to_unit(images).flatten(1).double().numpy()
        components = max(1, min(spec.components, allowed(len(pixels) - 1, options.coarse_counts), pixels.shape[1]))
        mixtures = max(1, min(spec.mixtures, allowed(len(pixels) // spec.images_per_mixture, options.coarse_counts)))
        with threadpool_limits(1):
            pca = PCA(components, whiten=True, random_state=library_seed(seed, "pca")).fit(pixels)
            scores = pca.transform(pixels) if len(pixels) > 1 else pixels[:, :1] * 0
        density, rounds, likelihood = GaussianMixtureDensity.fit(torch.from_numpy(scores), mixtures, spec.regularization, seed)
        basis = torch.from_numpy(pca.components_) * torch.from_numpy(pca.explained_variance_).nan_to_num().sqrt()[:, None]
        mean = torch.from_numpy(pca.mean_)
        rebuilt = mean + torch.from_numpy(scores) @ basis
        found = {
            "mean": mean,
            "basis": basis,
            "residual": (torch.from_numpy(pixels) - rebuilt).square().mean(0).sqrt(),
            **density.state_dict(),
        }
        self._state = {name: tensor.to(self.device, torch.float32) for name, tensor in found.items()}
        self.images_shown = len(images) * rounds
        if options.progress is not None:
            options.progress(self.images_shown, 1.0, -likelihood)

    def _generate(self, noise: Tensor) -> Tensor:
        state, components = self._state, self._state["basis"].shape[0]
        density = GaussianMixtureDensity(state["weights"], state["means"], state["factors"])
        scores: Tensor = density(noise[:, : 1 + components])
        pixels = state["mean"] + scores @ state["basis"]
        if self.spec.residual_noise:
            pixels = pixels + state["residual"] * noise[:, 1 + components :]
        return pixels.reshape(-1, *self.image_shape)


def _shapes(mixtures: int, components: int, pixels: int) -> dict[str, tuple[int, ...]]:
    return {
        "mean": (pixels,),
        "basis": (components, pixels),
        "residual": (pixels,),
        "weights": (mixtures,),
        "means": (mixtures, components),
        "factors": (mixtures, components, components),
    }
