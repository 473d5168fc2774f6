"""Run the `ureca` command as `python -m ureca`."""

from ureca.cli.main import main

main()
