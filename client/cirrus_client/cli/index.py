"""`cirrus index`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cirrus_client.cli.console import echo
from cirrus_client.cli.options import (
    BundleOption,
    NameOption,
    ServerOption,
    TransportOption,
    TrustPlansOption,
    check_server_options,
    open_encoder,
)
from cirrus_client.cli.plan import print_plan
from cirrus_client.cli.wording import described
from cirrus_client.gallery import Gallery, read_gallery
from cirrus_client.index import (
    BuildOptions,
    IndexManifest,
    QuerySample,
    SearchKind,
    Storage,
    build_index,
    read_metadata,
    read_query_sample,
    update_index,
)
from cirrus_client.index.manifest import read_manifest
from cirrus_client.index.parquet_items import PATH, count_named
from cirrus_client.names import Transport


def index(
    gallery: Annotated[Path, typer.Argument(help="A gallery that `cirrus embed` wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the index; an older one is replaced.")
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Build nothing: print what an index of each kind would cost for this gallery."),
    ] = False,
    memory: Annotated[
        str | None, typer.Option(help="With --plan: the memory that an index may take, like 8GiB.")
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Bring the index at --out up to date with the gallery. Its kind and storage stay, and its metadata "
            "where --metadata is not given.",
        ),
    ] = False,
    kind: Annotated[
        SearchKind | None,
        typer.Option(
            help="The others than exact are faster on large galleries; their agreement is measured.",
            show_default="exact",
        ),
    ] = None,
    storage: Annotated[
        Storage | None, typer.Option(help="float16 takes half the memory, and rounds.", show_default="float32")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Real queries to tune on and measure with: embeddings (.npy), or images and texts (.jsonl) that "
            "--bundle or --server encodes. By default the bundle's, which `cirrus embed` keeps with the gallery."
        ),
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(help="Parquet whose columns come with the results, and can be filtered by."),
    ] = None,
    key: Annotated[str, typer.Option(help="The column of --metadata with the images' paths.")] = PATH,
    root: Annotated[
        str | None, typer.Option(help="Where the images are now: a folder, or the prefix of their URLs.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="faiss, milvus, an installed one's name, or FILE.py:Class.", show_default="faiss"),
    ] = None,
    uri: Annotated[
        str | None, typer.Option(help="With --backend milvus: like http://localhost:19530, or a file for one machine.")
    ] = None,
    collection: Annotated[
        str | None,
        typer.Option(help="With --backend milvus: the name of the collection; the index's own older one is replaced."),
    ] = None,
    bundle: BundleOption = None,
    server: ServerOption = None,
    name: NameOption = None,
    transport: TransportOption = Transport.GRPC,
    trust_plans: TrustPlansOption = False,
) -> None:
    """Build an index over an embedded gallery, or bring one up to date."""
    if memory is not None and not plan:
        raise typer.BadParameter("it needs --plan, and limits no build", param_hint="--memory")
    if key != PATH and metadata is None:
        raise typer.BadParameter("it needs --metadata", param_hint="--key")
    check_server_options(server, name, transport)
    if queries is None:
        encoding = {"--bundle": bundle, "--server": server, "--name": name, "--trust-plans": trust_plans or None}
        _refuse(encoding, "it is for what encodes --queries: give them, or leave it out")
    if plan:
        print_plan(read_gallery(gallery), memory)
        return
    if out is None:
        raise typer.BadParameter("it is needed, unless --plan is given", param_hint="--out")
    read = read_gallery(gallery)
    encoder = (
        None
        if bundle is None and server is None
        else open_encoder(bundle, server, name, transport, trust_plans=trust_plans)
    )
    sample = _kept(read) if queries is None else read_query_sample(queries, read.space, encoder)
    columns = None if metadata is None else read_metadata(metadata, key=key)
    if update:
        kept = {"--kind": kind, "--storage": storage, "--uri": uri, "--collection": collection}
        _refuse(kept, "an update keeps the index's own: leave it out, or build anew")
        before = set(read_manifest(out).shards)
        built = update_index(read, out, queries=sample, metadata=columns, images=root, backend=backend)
        same = sum(shard.rows for shard in built.shards if shard in before)
        echo(f"{same:,} images are as they were, {built.count - same:,} are new")
    else:
        options = BuildOptions(kind or SearchKind.EXACT, storage or Storage.FLOAT32, sample, uri, collection)
        built = build_index(read, out, options=options, backend=backend or "faiss", metadata=columns, images=root)
    if columns is not None:
        echo(f"metadata: {count_named(columns, read):,} of {built.count:,} images have a row")
    echo(f"{out}: {built.count:,} images, {described(built.space)}{_agreement(built)}")


def _refuse(given: Mapping[str, object], reason: str) -> None:
    """Raise BadParameter for the first option that was given."""
    for option, value in given.items():
        if value is not None:
            raise typer.BadParameter(reason, param_hint=option)


def _kept(gallery: Gallery) -> QuerySample | None:
    queries = gallery.queries()
    return None if queries is None else QuerySample(queries, "the probe of the gallery's bundle")


def _agreement(built: IndexManifest) -> str:
    if built.agreement is None:
        exact = built.kind is SearchKind.EXACT and built.storage is Storage.FLOAT32
        return "" if exact else ", agreement with exact search not measured: give --queries"
    found = built.agreement
    return f", top-{found.k} agreement with exact search {found.share:.1%} ({found.queries} queries: {found.source})"
