"""The product's ServerApp, which a test can hold between collect and broadcast."""

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from held import meet

from strategies.federated_factory import FederatedFactory
from strategies.server_app import app as product

configure = FederatedFactory.configure_evaluate


def configure_evaluate(strategy: FederatedFactory, *arguments: Any) -> Iterable[Message]:
    """Meet the test, then broadcast."""
    meet("server-broadcast")
    return configure(strategy, *arguments)


FederatedFactory.configure_evaluate = configure_evaluate  # type: ignore[method-assign]
app = product
