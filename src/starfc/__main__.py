"""``python -m starfc`` is the command ``starfc``."""

from starfc.commands import main

main()
