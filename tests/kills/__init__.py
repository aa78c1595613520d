"""Kill every command that writes at its system calls, or fill its disk: ``python -m tests.kills``."""
