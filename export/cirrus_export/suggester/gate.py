"""The fidelity gate of a suggester: its graphs, its next tokens and its texts, compared with the torch original's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cirrus_client.agreement import cosine_min
from cirrus_client.bundle import Precision
from cirrus_client.files import write_atomically, write_model
from cirrus_client.records import Record
from cirrus_client.suggest import NEXT_TOKENS, READ_IMAGE, LocalSuggester
from cirrus_export.gate.report import opening
from cirrus_export.gate.thresholds import TEXT_THRESHOLDS, TextThresholds
from cirrus_export.suggester.original import Written


class GraphFidelity(Record):
    """One graph, on inputs of the original. items: images, or steps of texts. cosine_min: of its output."""

    graph: str
    output: str
    items: int
    cosine_min: float


class SuggesterReport(Record):
    """Everything that was measured, and the failures: what missed its threshold.

    next_token_agreement: share of the steps of the original's texts at which the same token is next. text_agreement:
    share of texts that are the original's, token by token, when the suggester reads its own.
    """

    suggester: str
    precision: Precision
    engine: str
    pairs: int
    thresholds: TextThresholds
    graphs: tuple[GraphFidelity, ...]
    next_token_agreement: float
    text_agreement: float
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True if nothing missed its threshold."""
        return not self.failures


@dataclass(frozen=True)
class PairFidelity:
    """One pair. text: the suggester's. agrees: whether it is the original's. same_next: at each step, bool [T]."""

    text: str
    agrees: bool
    image_cosine: float
    logits_cosine: float
    same_next: NDArray[np.bool_]


def measure_pair(suggester: LocalSuggester, original: Written) -> PairFidelity:
    """Compare a suggester with the original on one pair.

    Every step is given what the original read: its image tokens, and the tokens of its text before that step. The cache
    is the suggester's own.
    """
    pixels = original.pixels[None]
    token_ids = suggester.token_ids(pixels)[0]
    reading = suggester.reading(original.image_tokens[None])
    given = [suggester.spec.prompt, *((token,) for token in original.token_ids)]
    logits = np.concatenate([reading.logits(np.array([ids])) for ids in given[: len(original.logits)]])
    return PairFidelity(
        text=suggester.decode(token_ids),
        agrees=token_ids == original.token_ids,
        image_cosine=cosine_min(original.image_tokens, suggester.image_tokens(pixels)[0]),
        logits_cosine=cosine_min(original.logits, logits),
        same_next=logits.argmax(axis=1) == original.logits.argmax(axis=1),
    )


def report(suggester: LocalSuggester, pairs: Sequence[PairFidelity]) -> SuggesterReport:
    """Sum up what was measured of each pair, and hold it to the thresholds of the suggester's precision."""
    spec = suggester.spec
    same_next = np.concatenate([pair.same_next for pair in pairs])
    graphs = (
        GraphFidelity(
            graph=READ_IMAGE,
            output="image_tokens",
            items=2 * len(pairs),
            cosine_min=float(np.min([pair.image_cosine for pair in pairs])),
        ),
        GraphFidelity(
            graph=NEXT_TOKENS,
            output="logits",
            items=len(same_next),
            cosine_min=float(np.min([pair.logits_cosine for pair in pairs])),
        ),
    )
    limits = TEXT_THRESHOLDS[spec.precision]
    texts = float(np.mean([pair.agrees for pair in pairs]))
    return SuggesterReport(
        suggester=spec.name,
        precision=spec.precision,
        engine=suggester.device,
        pairs=len(pairs),
        thresholds=limits,
        graphs=graphs,
        next_token_agreement=float(same_next.mean()),
        text_agreement=texts,
        failures=tuple(_failures(graphs, float(same_next.mean()), texts, limits)),
    )


def write_report(found: SuggesterReport, root: Path) -> None:
    """Write `report.json` and `report.md`."""
    write_model(root / "report.json", found)
    write_atomically(root / "report.md", markdown(found).encode())


def markdown(found: SuggesterReport) -> str:
    """Return the report as Markdown."""
    limits = found.thresholds
    steps = found.graphs[-1].items
    texts = "reported only" if limits.text_agreement is None else f"{limits.text_agreement:.1%}"
    on = f"Precision {found.precision}, run on {found.engine}, {found.pairs} pairs of images."
    lines = [
        *opening(found.suggester, on, found.failures, kind="suggester"),
        "## Each graph against its torch module",
        "",
        "On the original's own inputs: a step of a text is given the original's image tokens, and its tokens before",
        "that step.",
        "",
        "| graph | output | items | cosine (min) | threshold |",
        "|---|---|--:|--:|--:|",
        *(
            f"| {row.graph} | {row.output} | {row.items} | {row.cosine_min:.7f} | {limits.cosine_min} |"
            for row in found.graphs
        ),
        "",
        "## Texts",
        "",
        "| compared with the original's | of | agreement | threshold |",
        "|---|--:|--:|--:|",
        f"| next token, at each step of the original's texts | {steps} | {found.next_token_agreement:.2%} "
        f"| {limits.next_token_agreement:.1%} |",
        f"| whole text, token by token | {found.pairs} | {found.text_agreement:.2%} | {texts} |",
    ]
    return "\n".join(lines) + "\n"


def _failures(
    graphs: Sequence[GraphFidelity], next_tokens: float, texts: float, limits: TextThresholds
) -> Iterable[str]:
    for row in graphs:
        if not row.cosine_min >= limits.cosine_min:  # a NaN fails
            yield (
                f"graph {row.graph}, output {row.output}: cosine to the original {row.cosine_min:.6f} is under "
                f"{limits.cosine_min}"
            )
    if not next_tokens >= limits.next_token_agreement:
        yield (
            f"{next_tokens:.1%} of the next tokens agree with the original's, {limits.next_token_agreement:.1%} must"
        )
    if limits.text_agreement is not None and not texts >= limits.text_agreement:
        yield f"{texts:.1%} of the texts agree with the original's, {limits.text_agreement:.0%} must"
