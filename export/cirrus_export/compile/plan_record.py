"""Write down what was compiled: `plans.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cirrus_client.bundle import Bundle
from cirrus_client.errors import ExportError
from cirrus_client.files import sha256_of_file
from cirrus_client.plans import AttentionSpec, Library, PlanSpec, PlansSpec, graph_sha256
from cirrus_export.compile.plan_builder import batch_profiles


def plan_spec(
    bundle: Bundle, folder: Path, library: Library, graph: str, attention: AttentionSpec, cosine_min: float | None
) -> PlanSpec:
    """Return the record of a graph's plan, which lies in `folder` until that becomes the library's folder."""
    file = f"{graph}.plan"
    return PlanSpec(
        file=f"{library.folder}/{file}",
        sha256=sha256_of_file(folder / file),
        graph_sha256=graph_sha256(bundle.spec, graph),
        profiles=batch_profiles(library, bundle.spec.max_batch),
        attention=attention,
        cosine_min=cosine_min,
    )


def check_any_was_built(bundle: Bundle, refused: Mapping[str, str]) -> None:
    """Raise ExportError if every graph was refused, so that older plans stay."""
    if set(refused) == set(bundle.spec.graphs):
        raise ExportError(f"bundle {bundle.root}: no graph could be compiled; {'; '.join(refused.values())}")


def check_none_was_refused(bundle: Bundle, record: PlansSpec) -> None:
    """Raise ExportError if a graph was refused. The plans of the others are there, and `plans.json` says why."""
    if record.refused:
        raise ExportError(
            f"bundle {bundle.root}: {len(record.refused)} of {len(bundle.spec.graphs)} graphs have no plan and run on "
            f"another engine; {'; '.join(record.refused.values())}. The plans of {', '.join(record.plans)} were kept"
        )
