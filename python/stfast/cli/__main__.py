"""`python -m stfast.cli` is `stfast`."""

from stfast.cli import main

main()
