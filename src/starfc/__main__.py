"""Run the command ``starfc`` as ``python -m starfc``."""

from starfc.commands import main

main()
