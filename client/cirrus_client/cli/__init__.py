"""The `cirrus` command. What it needs is imported by `main`, after it can answer a signal."""

from cirrus_client.cli.signals import end_at_once, leave_if_ended
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
    except SystemExit as ended:
        drop_unread()
        leave_if_ended(ended.code)
        raise
    finally:
        end_at_once()
        drop_unread()
