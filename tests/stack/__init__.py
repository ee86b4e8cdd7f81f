"""Private MariaDB, RabbitMQ and Swift servers on loopback, in a scratch directory."""
