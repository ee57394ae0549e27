"""`python -m attcl_cli`."""

from attcl_cli.cli import main

main()
