"""RabbitMQ: the wire form of messages, and the one connection that carries them."""
