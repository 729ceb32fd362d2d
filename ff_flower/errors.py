"""Every error this project raises on purpose, in one small tree.

::

    FederatedFactoryError
    ├── ConfigError          a key, a value or a combination of settings is wrong
    ├── DataError            an image set cannot be read or does not hold what it must
    │   └── PartitionError   the images cannot be split as asked
    ├── ModuleError          a generative module cannot be fitted or sampled
    │   └── NotFittedError   ``sample`` or ``state`` before ``fit``
    ├── VerificationError    received bytes break a named rule
    └── RunError             a run cannot go on (too few modules, nodes missing ...)

A message names the offending value, the rule it breaks and the remedy, in that order.
"""


class FederatedFactoryError(Exception):
    """Base of all errors raised by this project."""


class ConfigError(FederatedFactoryError, ValueError):
    """A key, a value or a combination of settings is wrong."""


class DataError(FederatedFactoryError, ValueError):
    """An image set cannot be read, or does not hold what it must."""


class PartitionError(DataError):
    """The images cannot be split over the nodes as asked."""


class ModuleError(FederatedFactoryError):
    """A generative module cannot be fitted or sampled."""


class NotFittedError(ModuleError):
    """A module was asked to sample, or for its state, before ``fit``."""


class VerificationError(FederatedFactoryError):
    """Received bytes break a rule; nothing of them has been used.

    Parameters
    ----------
    rule : str
        Short name of the broken rule, for example ``"finite-weights"``.
    detail : str
        What was found and what the rule demands.
    """

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail

    def __reduce__(self) -> tuple[type["VerificationError"], tuple[str, str]]:
        """Survive the way between processes, which replays the constructor's arguments."""
        return type(self), (self.rule, self.detail)


class RunError(FederatedFactoryError, RuntimeError):
    """A run cannot go on."""
