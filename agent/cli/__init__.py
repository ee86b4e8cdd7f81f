"""The command line of `backup-agent`."""
