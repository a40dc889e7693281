"""The report of `make torture`."""

from __future__ import annotations

from typing import ClassVar

from cirrus_bench.report import Report
from cirrus_client.records import Record
from tests.torture.mixed_load import Outcomes


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


class Served(Record):
    """What many callers of one server got. memory_mib: the server's own, before and after, where it was measured.

    refused: damaged images, each with the error that this process gives. unavailable: calls while the server was gone.
    """

    load: str
    answered: int
    refused: int
    unavailable: int
    memory_mib: tuple[int, int] | None = None

    @staticmethod
    def of(load: str, outcomes: Outcomes, *, memory_mib: tuple[int, int] | None = None) -> Served:
        """Return the row of a load without a wrong outcome."""
        counted = outcomes.counted
        unavailable = counted.total() - counted["answered"] - counted["refused"]
        return Served(
            load=load,
            answered=counted["answered"],
            refused=counted["refused"],
            unavailable=unavailable,
            memory_mib=memory_mib,
        )


class TortureReport(Report):
    """What was done to the jobs and the server. A row is there only if every check of its runs passed."""

    file_name: ClassVar[str] = "torture"

    rows: tuple[Tortured, ...]
    served: tuple[Served, ...]

    def markdown(self) -> str:
        """Render a row per job and fault with their sums, and a row per load of the server."""
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
                "A server under 8 callers at once: every answer was that of an encoder in the caller's process, every",
                "error the typed one.",
                "",
                "| load | answered | refused as broken | unavailable | memory of the server before, after |",
                "|---|--:|--:|--:|--:|",
                *(
                    f"| {s.load} | {s.answered:,} | {s.refused:,} | {s.unavailable:,} | {_memory(s.memory_mib)} |"
                    for s in self.served
                ),
                "",
                f"{self.machine}",
                "",
            ]
        )


def _memory(mib: tuple[int, int] | None) -> str:
    return "" if mib is None else f"{mib[0]} MiB, {mib[1]} MiB"
