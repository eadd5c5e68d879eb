"""`python -m armorclaw` is the command line."""

from armorclaw.cli import main

main()
