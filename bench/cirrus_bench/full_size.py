"""Export, verify and compile every architecture at its published size, with random weights; record what that takes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from cirrus_bench.measure import this_machine
from cirrus_bench.report import Report
from cirrus_client.errors import ExportError
from cirrus_client.files import write_atomically
from cirrus_client.records import Record
from cirrus_export.backbones.lvlm import LvlmConfig, footprint

FULL_SIZES = (
    ("transagg-union", "ViT-B-32"),
    ("transagg-union", "ViT-B-32-quickgelu"),
    ("transagg-union", "ViT-B-16"),
    ("transagg-union", "ViT-L-14"),
    ("transagg-union", "ViT-L-14-quickgelu"),
    ("transagg-union", "blip-base-coco"),
    ("searle", "ViT-L-14-quickgelu"),
    ("retrieval-dpo", "ViT-L-14-quickgelu"),
    ("sprc", "blip2-vit-l"),
    ("sprc", "blip2-vit-g"),
)
_QUERIES, _GALLERY = 8, 16
log = logging.getLogger(__name__)


class FullSizeRow(Record):
    """One export.

    peak_bytes: resident memory of the exporting process. disk_bytes: of the bundle's graphs. cosine_min,
    top10_agreement: the worst of the fidelity gate. compile_seconds: what TensorRT for RTX took to compile the graphs
    for L4; None where it is not installed.
    """

    recipe: str
    backbone: str
    seconds: float
    peak_bytes: int
    disk_bytes: int
    cosine_min: float
    top10_agreement: float
    compile_seconds: float | None


class LvlmNeeds(Record):
    """What exporting `cir-lvlm` at 7B takes, computed from its configuration without allocating a weight."""

    model: str
    parameters: int
    disk_bytes: int
    memory_bytes: int


class FullSizeReport(Report):
    """All exports of one run. lvlm: what the architecture that does not fit here would need."""

    file_name: ClassVar[str] = "full_size"

    rows: tuple[FullSizeRow, ...]
    lvlm: LvlmNeeds

    def markdown(self) -> str:
        """Render the report as Markdown."""
        lines = [
            "# Published sizes, exported and verified",
            "",
            f"Random weights, fp32; the fidelity gate has {_QUERIES} queries and {_GALLERY} images. Every row is a "
            "whole `cirrus export` in a process of its own, imports and gate included. Then `cirrus compile --for l4` "
            "compiles its graphs with TensorRT for RTX, which takes no GPU.",
            "",
            "| recipe | backbone | seconds | peak memory, GiB | graphs on disk, GiB | smallest cosine "
            "| top-10 agreement | compiled for L4, seconds |",
            "|---|---|--:|--:|--:|--:|--:|--:|",
            *(
                f"| {row.recipe} | {row.backbone} | {row.seconds:,.0f} | {row.peak_bytes / 2**30:.1f} | "
                f"{row.disk_bytes / 2**30:.2f} | {row.cosine_min:.7f} | {row.top10_agreement:.0%} | "
                f"{'-' if row.compile_seconds is None else format(row.compile_seconds, ',.0f')} |"
                for row in self.rows
            ),
            "",
            _lvlm_line(self.lvlm),
            "",
            str(self.machine),
        ]
        return "\n".join(lines) + "\n"


def export_full_sizes(work: Path, sizes: Sequence[tuple[str, str]] = FULL_SIZES) -> FullSizeReport:
    """Export each architecture in a process of its own, remove its bundle, and return the report.

    sizes: recipes and backbones. work: where bundles are written; rows that an interrupted run of the same machine and
    packages finished there are kept. Raises ExportError with the output of an export or a compilation that failed.
    """
    machine = this_machine()
    finished = work / hashlib.sha256(machine.model_dump_json().encode()).hexdigest()[:12]
    rows = [_row(recipe, backbone, work, finished) for recipe, backbone in sizes]
    shutil.rmtree(finished)
    return FullSizeReport(rows=tuple(rows), lvlm=_lvlm_needs(), machine=machine)


def _lvlm_needs() -> LvlmNeeds:
    """Return the needs of Qwen2-7B behind CLIP ViT-L/14 at 336 px with 256 connector queries, as published."""
    config = LvlmConfig(
        vision={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        language={
            "model_type": "qwen2",
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        connector_queries=256,
        connector_heads=28,
        context_length=77,
        start_id=0,
        end_id=0,
        pad_id=0,
        query_prompt=(0,),
        target_prompt=(0,),
    )
    needs = footprint(config)
    return LvlmNeeds(
        model="Qwen2-7B, CLIP ViT-L/14 at 336 px",
        parameters=needs.parameters,
        disk_bytes=needs.disk_bytes,
        memory_bytes=needs.memory_bytes,
    )


def _lvlm_line(needs: LvlmNeeds) -> str:
    return (
        f"`cir-lvlm` at full size ({needs.model}) does not fit this machine. From its configuration alone: "
        f"{needs.parameters / 1e9:.2f}B parameters; at fp32 {needs.disk_bytes / 2**30:.0f} GiB of graphs on disk "
        f"and {needs.memory_bytes / 2**30:.0f} GiB of memory while they are written."
    )


@dataclass(frozen=True)
class _Run:
    """What a command took: wall-clock seconds and the largest resident memory."""

    seconds: float
    peak_bytes: int


def _run(*arguments: str) -> _Run:
    """Run `cirrus` in a process of its own. Raises ExportError with its output if it failed."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        command = [str(Path(sys.executable).with_name("cirrus")), *arguments]
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    if child.returncode != 0:
        raise ExportError(f"cirrus {' '.join(arguments)}: exit code {child.returncode}:\n{said[-2000:]}")
    return _Run(time.perf_counter() - started, 1024 * usage.ru_maxrss)


def _row(recipe: str, backbone: str, work: Path, finished: Path) -> FullSizeRow:
    """Return the row of one export. finished: where the rows of a run lie until it is whole."""
    done = finished / f"{recipe}-{backbone}.json"
    if done.is_file():
        return FullSizeRow.model_validate_json(done.read_bytes())
    row = _export(recipe, backbone, work / done.stem)
    write_atomically(done, row.model_dump_json().encode())
    return row


def _export(recipe: str, backbone: str, out: Path) -> FullSizeRow:
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--recipe", recipe, "--backbone", backbone, "--pretrained", "random", "--head", "random"]
    sizes = ["--queries", str(_QUERIES), "--gallery", str(_GALLERY), "--out", str(out)]
    log.info("exporting %s on %s at full size", recipe, backbone)
    exported = _run("export", *arguments, *sizes)
    compiled = _run("compile", str(out), "--for", "l4") if find_spec("tensorrt_rtx_bindings") else None
    report = json.loads((out / "report.json").read_text())
    row = FullSizeRow(
        recipe=recipe,
        backbone=backbone,
        seconds=exported.seconds,
        peak_bytes=exported.peak_bytes,
        disk_bytes=sum(path.stat().st_size for path in (out / "graphs").iterdir()),
        cosine_min=min(
            *(stage["cosine_min"] for stage in report["stages"]),
            *(result[side] for result in report["retrieval"] for side in ("query_cosine_min", "target_cosine_min")),
        ),
        top10_agreement=min(result["top10_agreement"] for result in report["retrieval"]),
        compile_seconds=None if compiled is None else compiled.seconds,
    )
    shutil.rmtree(out)
    return row
