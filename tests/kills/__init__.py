"""Every command that writes is killed at its calls to the system, or finds the disk full: ``python -m tests.kills``."""
