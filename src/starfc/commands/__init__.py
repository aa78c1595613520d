"""The commands of ``starfc``, one module each."""
