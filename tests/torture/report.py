"""The report of `make torture`."""

from __future__ import annotations

from typing import ClassVar

from cirrus_bench.report import Report
from cirrus_client.records import Record


class Tortured(Record):
    """One job under one fault. disturbed: number of runs with the fault, each checked and then run to its end.

    killed, typed_errors, unharmed: how the disturbed runs ended. unharmed: the fault made no difference to the run, or
    came after its end.
    """

    job: str
    fault: str
    disturbed: int
    killed: int
    typed_errors: int
    unharmed: int


class TortureReport(Report):
    """What was done to the jobs. A row is there only if every check of its runs passed."""

    file_name: ClassVar[str] = "torture"

    rows: tuple[Tortured, ...]

    def markdown(self) -> str:
        """Render a row per job and fault, and the sums."""
        sums = [sum(getattr(row, name) for row in self.rows) for name in ("disturbed", "killed", "typed_errors")]
        return "\n".join(
            [
                "# Faults",
                "",
                f"{sums[0]:,} disturbed runs: {sums[1]:,} were killed, {sums[2]:,} ended in a typed error. After each, "
                "the output was usable, old or new, with every item once; the next run made it equal to the byte to "
                "that of an undisturbed run, and left nothing else behind.",
                "",
                "| job | fault | disturbed runs | killed | typed errors | went on |",
                "|---|---|--:|--:|--:|--:|",
                *(
                    f"| {r.job} | {r.fault} | {r.disturbed} | {r.killed} | {r.typed_errors} | {r.unharmed} |"
                    for r in self.rows
                ),
                "",
                f"{self.machine}",
                "",
            ]
        )
