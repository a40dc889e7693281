"""The `cirrus` command. What it needs is imported by `main`, after it can answer a signal."""

from cirrus_client.cli.signals import end_at_once
from cirrus_client.cli.streams import check_streams, drop_unread
from cirrus_client.cores import keep_openmp_to_quota


def main() -> None:
    """Run the command line."""
    end_at_once()
    check_streams()
    keep_openmp_to_quota()
    try:
        from cirrus_client.cli.app import app

        app()
    finally:
        end_at_once()
        drop_unread()
