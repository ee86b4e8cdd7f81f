"""The configuration: agent.toml, environment variables, secret files."""
