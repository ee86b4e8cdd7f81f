"""Private MariaDB, RabbitMQ and Swift on loopback, in a scratch folder."""
