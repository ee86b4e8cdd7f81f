"""backup-agent: MySQL and MariaDB backups as verified, encrypted objects in Swift."""

__version__ = "0.1.0"
