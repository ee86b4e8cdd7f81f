"""The agent without a broker, Swift and an agent.toml, on a real MariaDB."""
