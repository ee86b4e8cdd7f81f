"""The daemon and the command line on real MariaDB, RabbitMQ and Swift."""
