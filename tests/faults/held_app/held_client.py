"""The product's ClientApp, which a test can hold before it works on a message."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from held import meet

from clients.client_app import app as product


class HeldClientApp(ClientApp):
    """Hands every message to the product's app, once the test lets it."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Meet the test, then work."""
        who = context.node_config.get("name", context.node_config.get("partition-id"))
        meet(f"{who}-{message.metadata.message_type}")
        return product(message, context)


app = HeldClientApp()
