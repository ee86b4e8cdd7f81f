"""The agent without broker, Swift and agent.toml, on a real MariaDB."""
