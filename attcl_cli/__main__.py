"""`python -m attcl_cli`."""

from attcl_cli.cli.app import main

main()
