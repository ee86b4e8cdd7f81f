"""The wire form of RabbitMQ messages, and the connections that carry them."""
