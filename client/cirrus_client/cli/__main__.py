"""`python -m cirrus_client.cli`."""

from cirrus_client.cli import main

main()
