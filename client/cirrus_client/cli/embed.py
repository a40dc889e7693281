"""`cirrus embed`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from cirrus_client.bundle import Bundle
from cirrus_client.cli.console import echo, shows_progress
from cirrus_client.cli.options import (
    BundleOption,
    NameOption,
    ServerOption,
    TransportOption,
    TrustPlansOption,
    check_encoder_options,
    open_encoder,
)
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import GalleryError
from cirrus_client.gallery import (
    BUNDLE,
    MANIFEST,
    Columns,
    GallerySummary,
    check_free,
    embed_gallery,
    open_source,
)
from cirrus_client.gallery.cached_encoder import CachedEncoder
from cirrus_client.gallery.cluster import connected
from cirrus_client.gallery.cluster_tools import BundleTools, shared_cache
from cirrus_client.gallery.feature_cache import FeatureCache
from cirrus_client.gallery.new_head import bundle_with_head
from cirrus_client.image.preprocess import Decoding
from cirrus_client.memory import keep_freed_memory
from cirrus_client.names import Transport

_SHOWN = 20
_UNDONE = 3
T = TypeVar("T", Path, Bundle)


def embed(
    images: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder, list of paths (.txt), URL (s3://, gs://, https://), tars ('x/{00..99}.tar'), Parquet.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the embeddings; an unfinished one is resumed.")],
    bundle: BundleOption = None,
    server: ServerOption = None,
    name: NameOption = None,
    transport: TransportOption = Transport.GRPC,
    trust_plans: TrustPlansOption = False,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Images per batch.")] = 32,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Images per shard; an interrupted job loses at most one shard.")
    ] = 10_000,
    cache: Annotated[
        Path | None, typer.Option(help="Keep the backbone's outputs here: embedding with a new head opens no image.")
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(help="A newly trained head for the bundle's backbone; exported to OUT/bundle, to search with."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="What runs the graphs in this process; by default the fastest, measured.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column of Parquet files with the bytes, paths or URLs of images.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column of Parquet files with names for images that are bytes.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Embed on the Ray cluster at host:port, or `auto` for this machine's."),
    ] = None,
    ray_cores: Annotated[int | None, typer.Option(min=1, help="CPU cores of a worker on the cluster.")] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove embeddings of images that are no longer in the source.")
    ] = False,
    decode: Annotated[
        Decoding,
        typer.Option(help="fast scales large JPEGs as it decodes; report.md has its drift. nvjpeg decodes on a GPU."),
    ] = Decoding.EXACT,
) -> None:
    """Embed a gallery. Broken files are listed and skipped; an interrupted job resumes where it was.

    Exit code 3: some files could not be read on this machine, and the same command tries them again.
    """
    if server is not None:
        chosen = None if decode is Decoding.EXACT else decode
        _refuse_with_server(engine=engine, decode=chosen, cache=cache, head=head, ray=ray)
    if ray_cores is not None and ray is None:
        raise typer.BadParameter("it needs --ray", param_hint="--ray-cores")
    for option, value in {"--cache": cache, "--head": head}.items():
        if value is not None:
            _needed(bundle, option)
    check_encoder_options(bundle, server, name, transport, trust_plans=trust_plans)
    keep_freed_memory()
    if head is not None:
        bundle = _with_head(_needed(bundle, "--head"), head, out)
    opened = None if bundle is None else Bundle.open(bundle, trust_plans=trust_plans)
    run = partial(
        embed_gallery,
        open_source(images, Columns(image_column, id_column)),
        out,
        queries=None if opened is None else opened.probe_queries(),
        batch_size=batch_size,
        shard_size=shard_size,
        prune=prune,
        show_progress=shows_progress(),
    )
    if ray is not None:
        opened = _needed(opened, "--ray")
        tools = BundleTools(opened.root.resolve(), engine, decode, trust_plans)
        summary = _on_cluster(run, ray, ray_cores, tools, opened, cache)
    elif opened is None:
        summary = run(open_encoder(None, server, name, transport))
    elif cache is None:
        summary = run(LocalEncoder(opened, engine=engine, decoding=decode, checked=True))
    else:
        with FeatureCache(cache, opened) as features:
            cached = CachedEncoder(opened, features, engine=engine, decoding=decode)
            summary = run(cached, recollection=cached)
    _report(summary, out)
    if not summary.embedded:
        raise GalleryError(f"gallery {out}: none of {len(summary.rejected) + len(summary.undone):,} files was embedded")
    if head is not None:
        echo(f"search it with --bundle {bundle}")
    if not summary.is_whole:
        raise typer.Exit(_UNDONE)


def _on_cluster(
    run: Callable[..., GallerySummary],
    address: str,
    cores: int | None,
    tools: BundleTools,
    bundle: Bundle,
    cache: Path | None,
) -> GallerySummary:
    with ExitStack() as held:
        cluster = held.enter_context(connected(address, cores=cores))
        if cache is not None:
            tools = replace(tools, cache=held.enter_context(shared_cache(cache, tools.bundle)))
        if tools.engine is None:
            tools = replace(tools, engine=cluster.ask(tools.choose_engine))
        return run(LocalEncoder(bundle), workforce=cluster.workforce(tools))


def _refuse_with_server(**options: object) -> None:
    for option, value in options.items():
        if value is not None:
            raise typer.BadParameter("it needs --bundle; with --server, the server encodes", param_hint=f"--{option}")


def _needed(bundle: T | None, option: str) -> T:
    if bundle is None:
        raise typer.BadParameter("it needs --bundle as well", param_hint=option)
    return bundle


def _with_head(base: Path, head: Path, out: Path) -> Path:
    check_free(out)
    if (out / MANIFEST).exists() and not (out / BUNDLE).exists():
        raise GalleryError(f"gallery {out} was embedded without --head; embed into another folder", path=out)
    return bundle_with_head(Bundle.open(base), head, out / BUNDLE).root


def _report(summary: GallerySummary, out: Path) -> None:
    echo(f"{out}: {summary.embedded:,} images embedded, {summary.new:,} files dealt with in this run")
    if summary.copies:
        echo(f"{summary.copies:,} of them have the bytes of another image, and its embedding")
    _list("rejected as no usable image", [(item.file.path, item.reason) for item in summary.rejected])
    _list("skipped", [(item.path, item.reason) for item in summary.skipped])
    if summary.missing:
        echo(f"{summary.missing:,} embedded images are no longer in the source: --prune removes them")
    undone = [(item.file.path, item.reason) for item in summary.undone]
    unread = [(item.path, item.reason) for item in summary.unread]
    _list("left undone by a fault of this machine; the same command tries again", [*undone, *unread])


def _list(what: str, files: list[tuple[str, str]]) -> None:
    """Print how many files there are of a kind, and the first ones with their reasons."""
    if files:
        echo(f"{len(files):,} {'file was' if len(files) == 1 else 'files were'} {what}:")
    for path, reason in files[:_SHOWN]:
        echo(f"  {path}: {reason}")
    if len(files) > _SHOWN:
        echo(f"  ... and {len(files) - _SHOWN:,} more")
