"""`cirrus export` and its companions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cirrus_client.bundle import Precision
from cirrus_client.cli.console import echo, shows_progress
from cirrus_client.errors import BundleError
from cirrus_client.suggest import CONTRACT as SUGGESTER
from cirrus_export.arguments import options_of, probe_of
from cirrus_export.gate.probe import FEWEST_IMAGES
from cirrus_export.repository import Flavour

if TYPE_CHECKING:
    from cirrus_export.backbones.backbone import Backbone
    from cirrus_export.backbones.family import Family


def export_command(
    recipe: Annotated[
        str, typer.Option(help="The CIR method: a name of `cirrus recipes`, module:Class or FILE.py:Class.")
    ],
    backbone: Annotated[
        str,
        typer.Option(
            help="An open_clip model, like ViT-L-14; blip-base-coco, blip2-vit-g; from-checkpoint; or FILE.py:Class."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle's folder; an older bundle is replaced.")],
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="An open_clip tag (openai), a file, TAG=FILE, or 'random'; not needed where the head carries it."
        ),
    ] = None,
    head: Annotated[str | None, typer.Option(help="The trained head's checkpoint, or 'random'.")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="A tokenizer.json for a backbone whose tokenizer is on a hub (SigLIP); without it, it is fetched."
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Arithmetic inside the graphs.")] = Precision.FP32,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="An option as name=value: a recipe's, like pad_mask=additive, or quick_gelu=true; repeatable."
        ),
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(help="A folder of images and queries to verify with, in FashionIQ's layout; else Cirrus's own."),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Number of queries that are taken from the probe.")] = 64,
    gallery: Annotated[
        int, typer.Option(min=FEWEST_IMAGES, help="Number of gallery images that are taken from the probe.")
    ] = 128,
    for_triton: Annotated[
        str | None, typer.Option(help="Also compile TensorRT plans here, for this NGC release of Triton, like 26.07.")
    ] = None,
) -> None:
    """Export a checkpoint to a bundle, and compare the bundle with the original."""
    from cirrus_export.pipeline import ExportRequest, export

    request = ExportRequest(
        recipe=recipe,
        backbone=backbone,
        pretrained=pretrained,
        head=head,
        out=out,
        precision=precision,
        options=options_of(option or []),
        for_triton=for_triton,
        tokenizer=tokenizer,
    )
    bundle = export(request, probe_of(probe, queries=queries, gallery=gallery), show_progress=shows_progress())
    echo(f"{bundle.root}: fidelity gate passed, see {bundle.root / 'report.md'}; serve it: cirrus serve {bundle.root}")


def compile_command(
    bundle: Annotated[Path, typer.Argument(help="A bundle that passed its gate.")],
    for_triton: Annotated[
        str | None, typer.Option(help="Refuse to compile what this NGC release of Triton can't load, like 26.07.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            help="Compile for this card (l4, rtx-pro-6000) or architecture (sm89) with TensorRT for RTX, "
            "which needs no GPU; repeatable, for one plan that runs on each.",
        ),
    ] = None,
    hardware_compatible: Annotated[bool, typer.Option(help="Plans for every GPU from Ampere on; slower.")] = False,
    version_compatible: Annotated[
        bool, typer.Option(help="Plans for newer TensorRTs of the same major as well; slower.")
    ] = False,
    probe: Annotated[
        Path | None,
        typer.Option(help="A folder of images and texts to verify with, in FashionIQ's layout; else Cirrus's own."),
    ] = None,
) -> None:
    """Compile a bundle's graphs to TensorRT plans, on the machine that serves them; with --for, on any machine."""
    from cirrus_client.bundle import Bundle
    from cirrus_export.compile.ahead_of_time import compile_ahead
    from cirrus_export.compile.tensorrt_engine import CompileOptions, check_machine, compile_plans

    if (bundle / SUGGESTER).exists():
        raise BundleError(
            f"{bundle} is a suggester, whose graphs run on ONNX Runtime or OpenVINO and not on plans; for less memory "
            "and time export it in a lower precision: cirrus export-suggester --precision",
            path=bundle,
        )
    if target:
        _refuse_beside_for(
            {
                "--for-triton": for_triton is not None,
                "--hardware-compatible": hardware_compatible,
                "--version-compatible": version_compatible,
                "--probe": probe is not None,
            }
        )
        ahead = compile_ahead(Bundle.open(bundle), target)
        for name, plan in ahead.plans.items():
            echo(f"{plan.file}: {name}, attention {plan.attention.fusion}; not run yet")
        echo(f"{bundle}: {ahead.origin}; a GPU that loads a plan first compares it with its graph")
        return
    options = CompileOptions(
        for_triton=for_triton, hardware_compatible=hardware_compatible, version_compatible=version_compatible
    )
    opened = Bundle.open(bundle)
    check_machine(options)
    record = compile_plans(opened, probe_of(probe, queries=8, gallery=16), options)
    for name, plan in record.plans.items():
        attention = plan.attention
        echo(
            f"{plan.file}: cosine {plan.cosine_min:.6f} to {name}, attention {attention.fusion} "
            f"({attention.fused_layers} kernels for {attention.attentions})"
        )
    echo(f"{bundle}: TensorRT {record.tensorrt}, {record.gpu}; repository: {bundle / 'triton' / Flavour.TENSORRT}")


def _refuse_beside_for(given: dict[str, bool]) -> None:
    """Refuse options of TensorRT on a GPU that TensorRT for RTX would ignore, or can't serve."""
    reasons = {
        "--for-triton": "Triton's TensorRT backend loads TensorRT's plans, and not those of TensorRT for RTX",
        "--hardware-compatible": "TensorRT for RTX ignores it; name several cards instead, like --for a10 --for l4",
        "--version-compatible": "TensorRT for RTX has no runtime to put into plans; compile again after an update",
        "--probe": "nothing is run here; a GPU that loads a plan compares it with its graph",
    }
    for option, is_given in given.items():
        if is_given:
            raise typer.BadParameter(f"not together with --for: {reasons[option]}", param_hint=option)


def repository_command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles that passed their gates.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model repository's folder; an older one is replaced.")],
    flavour: Annotated[Flavour, typer.Option(help="What runs the graphs.")] = Flavour.PYTHON,
    suggester: Annotated[Path | None, typer.Option(help="A suggester to serve beside them.")] = None,
) -> None:
    """Write one Triton model repository of several bundles, in which a shared encoder is there once."""
    from cirrus_client.bundle import Bundle
    from cirrus_export.repository import write_shared_repository

    opened = [Bundle.open(path) for path in bundles]
    write_shared_repository(opened, flavour, out, suggester=suggester)
    names = ", ".join(bundle.spec.name for bundle in opened)
    echo(f"{out}: {names}; ask for one with `--server host:port --name {opened[0].spec.name}`")


def export_suggester_command(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of an InstructBLIP, as transformers saves it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The suggester's folder; an older one is replaced.")],
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of images on which texts are compared.")] = 8,
    precision: Annotated[Precision, typer.Option(help="Arithmetic inside the graphs.")] = Precision.FP32,
) -> None:
    """Export MTST's edit writer: two images in, the edit text out. `cirrus suggest` uses it."""
    from cirrus_export.gate.probe import default_probe
    from cirrus_export.suggester.export import export_suggester

    probe = default_probe(queries=pairs, gallery=2 * pairs)
    images = [(query.image, probe.gallery[query.target]) for query in probe.queries]
    export_suggester(checkpoint, out, images, precision=precision, show_progress=shows_progress())
    echo(f"{out}: fidelity gate passed, see {out / 'report.md'}; try it: cirrus suggest a.jpg b.jpg --model {out}")


def recipes_command() -> None:
    """List the recipes: what each implements, what it needs, and its options."""
    from cirrus_client.cli.console import print_table
    from cirrus_export.backbones.registry import families
    from cirrus_export.recipes import recipes

    known = families()
    rows = [
        (
            name,
            "needed" if recipe.needs_head else _needed_on(recipe.needs_head_on, known),
            ", ".join(recipe.options_type.model_fields) or "-",
            (recipe.__doc__ or "").split("\n")[0],
        )
        for name, recipe in sorted(recipes().items())
    ]
    print_table(("recipe", "head", "options", "what it is"), rows)
    echo("MTST's edit writer makes texts and not embeddings, so it is no recipe: cirrus export-suggester exports it")


def _needed_on(kinds: tuple[type[Backbone], ...], known: Sequence[Family]) -> str:
    names = [name for family in known if issubclass(family.backbone_type, kinds) for name in family.names()]
    return f"needed on {', '.join(names)}" if names else "none"
