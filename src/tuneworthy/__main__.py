"""`python -m tuneworthy`."""

from tuneworthy.cli import main

main()
