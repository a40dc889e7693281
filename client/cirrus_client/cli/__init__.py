"""The `cirrus` command."""

from cirrus_client.cli.app import main

__all__ = ["main"]
