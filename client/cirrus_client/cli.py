"""The `cirrus` command. `export` and `bench` come from the packages of those names, where they are installed."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from cirrus_client.bundle import Bundle, SpaceSpec
from cirrus_client.encoders import Encoder, LocalEncoder
from cirrus_client.engines import EngineName
from cirrus_client.errors import CirrusError, GalleryError
from cirrus_client.gallery import BUNDLE, MANIFEST, GallerySummary, check_free, embed_gallery, read_gallery
from cirrus_client.image.preprocess import Decoding
from cirrus_client.index import BuildOptions, IndexManifest, SearchKind, build_index
from cirrus_client.memory import keep_freed_memory
from cirrus_client.names import Transport
from cirrus_client.retriever import Match, open_retriever
from cirrus_client.triton import TritonEncoder

app = typer.Typer(
    help="Composed image retrieval: from a trained checkpoint to an answered query.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_out = Console()

BundleOption = Annotated[Path | None, typer.Option("--bundle", "-b", help="Encode in this process with this bundle.")]
ServerOption = Annotated[
    str | None, typer.Option("--server", "-s", help="Encode through a Triton server at host:port.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Which bundle, where the server has several.", show_default=False)
]
ProtocolOption = Annotated[Transport, typer.Option("--protocol", help="How to talk to the server.")]


@app.command()
def embed(
    images: Annotated[Path, typer.Argument(help="Folder of image files, searched recursively.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the embeddings; an unfinished one is resumed.")],
    bundle: BundleOption = None,
    server: ServerOption = None,
    name: NameOption = None,
    protocol: ProtocolOption = Transport.GRPC,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    shard_size: Annotated[int, typer.Option(min=1, help="Images a shard; a killed job loses at most one.")] = 10_000,
    cache: Annotated[
        Path | None, typer.Option(help="Keep the backbone's outputs here: a new head then opens no image.")
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(help="A newly trained head for the bundle's backbone; exported to OUT/bundle, to search with."),
    ] = None,
    engine: Annotated[
        EngineName | None, typer.Option(help="What runs the graphs in this process; by default the fastest, measured.")
    ] = None,
    decode: Annotated[
        Decoding,
        typer.Option(help="fast scales large JPEGs as it decodes; report.md has its drift. nvjpeg decodes on a GPU."),
    ] = Decoding.EXACT,
) -> None:
    """Embed a gallery. Broken files are listed and skipped; a killed job resumes where it was."""
    if server is not None and (engine is not None or decode is not Decoding.EXACT):
        raise typer.BadParameter("--engine and --decode are of this process, and --server encodes elsewhere")
    keep_freed_memory()
    if head is not None:
        bundle = _with_head(bundle, head, out)
    if cache is None:
        encoder = _encoder(bundle, server, name, protocol, engine, decode)
        summary = embed_gallery(images, out, encoder, batch_size=batch_size, shard_size=shard_size, show_progress=True)
    else:
        from cirrus_client.gallery.cached_encoder import CachedEncoder
        from cirrus_client.gallery.feature_cache import FeatureCache

        if bundle is None:
            raise typer.BadParameter("--cache encodes in this process: give --bundle")
        opened = Bundle.open(bundle)
        with FeatureCache(cache, opened) as features:
            cached = CachedEncoder(opened, features, engine=engine, decoding=decode)
            summary = embed_gallery(
                images,
                out,
                cached,
                prepare=cached.prepare_file,
                batch_size=batch_size,
                shard_size=shard_size,
                show_progress=True,
            )
    _report_gallery(summary, out)
    if head is not None:
        _out.print(f"search it with --bundle {bundle}")


@app.command()
def index(
    gallery: Annotated[Path, typer.Argument(help="A gallery that `cirrus embed` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the index; an older one is replaced.")],
    kind: Annotated[
        SearchKind, typer.Option(help="Approximate is faster on large galleries; its agreement is measured.")
    ] = SearchKind.EXACT,
) -> None:
    """Build a FAISS index over an embedded gallery."""
    built = build_index(read_gallery(gallery), out, options=BuildOptions(kind=kind))
    _out.print(
        f"{out}: {built.count:,} images, {_item(built.space)}{_agreement(built)}, space {built.space.fingerprint[:16]}"
    )


@app.command()
def search(
    index: Annotated[Path, typer.Option("--index", "-i", help="An index that `cirrus index` wrote.")],
    image: Annotated[
        Path | None, typer.Argument(help="Reference image or sketch; '-' for a query of text alone.")
    ] = None,
    text: Annotated[str | None, typer.Argument(help='Edit text, like "make it blue".')] = None,
    bundle: BundleOption = None,
    server: ServerOption = None,
    name: NameOption = None,
    protocol: ProtocolOption = Transport.GRPC,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of results.")] = 10,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet of query and results here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Search: this image, but as the text says."""
    from cirrus_client.sheet import contact_sheet, save_sheet

    reference = None if image is None or str(image) == "-" else image
    retriever = open_retriever(_encoder(bundle, server, name, protocol), index)
    matches = retriever.search(image=reference, text=text, k=k)
    if as_json:
        typer.echo(json.dumps([asdict(match) for match in matches], indent=2, default=str))
    else:
        _out.print(_match_table(matches))
    if sheet is not None:
        save_sheet(contact_sheet(reference, text, matches), sheet)
        typer.echo(f"contact sheet: {sheet}", err=True)


@app.command()
def suggest(
    reference: Annotated[Path, typer.Argument(help="The image to start from.")],
    target: Annotated[Path, typer.Argument(help="The image to arrive at.")],
    model: Annotated[Path | None, typer.Option(help="A suggester that `cirrus export-suggester` wrote.")] = None,
    server: ServerOption = None,
) -> None:
    """Suggest the edit text that leads from one image to another."""
    from cirrus_client.suggest import LocalSuggester, TritonSuggester

    if model is not None and server is None:
        typer.echo(LocalSuggester(model).suggest(reference, target))
    elif server is not None and model is None:
        typer.echo(TritonSuggester(server).suggest(reference, target))
    else:
        raise typer.BadParameter("give either --model or --server")


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle, a suggester, or what `cirrus repository` wrote.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback exposes the server.")
    ] = "127.0.0.1",
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
) -> None:
    """Serve a bundle with the Triton server of the nvidia-pytriton wheel, until interrupted."""
    from cirrus_client.triton.server import TritonServer

    server = TritonServer(
        _repository(bundle),
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
    )
    with server:
        _out.print(
            f"{bundle} is served: gRPC {host}:{grpc_port}, HTTP {host}:{http_port}, "
            f"metrics http://{host}:{metrics_port}/metrics; log {server.log_path}; stop with Ctrl-C"
        )
        server.wait()


@app.command()
def verify(bundle: Annotated[Path, typer.Argument(help="A bundle.")]) -> None:
    """Check that a bundle is whole and passed its fidelity gate."""
    opened = Bundle.open(bundle)
    spec = opened.spec
    _out.print(
        f"{bundle}: whole ({len(spec.files)} files match their sha256), fidelity gate passed; recipe {spec.recipe} on "
        f"{spec.backbone}, {spec.precision}, {_item(spec.space)}, space {spec.space.fingerprint[:16]}"
    )


@app.command()
def doctor(
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Also say whether this bundle's TensorRT plans run here.")
    ] = None,
) -> None:
    """Print what is installed, which engines and GPUs work, and what is missing."""
    from cirrus_client.doctor import examine

    table = Table(title="cirrus doctor", title_justify="left")
    for heading in ("", "what", "found", "way out"):
        table.add_column(heading)
    findings = examine(None if bundle is None else Bundle.open(bundle))
    for finding in findings:
        table.add_row("ok" if finding.ok else "--", finding.what, escape(finding.found), escape(finding.way_out))
    _out.print(table)
    if not all(finding.ok for finding in findings if finding.required):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; an error of Cirrus prints its message and exits 1."""
    to_stderr = RichHandler(console=Console(stderr=True), show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[to_stderr])
    logging.getLogger("cirrus_client").setLevel(logging.INFO)
    logging.getLogger("cirrus_export").setLevel(logging.INFO)
    for plugin in entry_points(group="cirrus.commands"):
        command = plugin.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=plugin.name)
        else:
            app.command(name=plugin.name)(command)
    try:
        app()
    except CirrusError as error:
        typer.secho(f"cirrus: {type(error).__name__}: {error}", err=True, fg=typer.colors.RED)
        sys.exit(1)


def _encoder(
    bundle: Path | None,
    server: str | None,
    name: str | None,
    protocol: Transport,
    engine: EngineName | None = None,
    decoding: Decoding = Decoding.EXACT,
) -> Encoder:
    if (bundle is None) == (server is None):
        raise typer.BadParameter("give either --bundle or --server")
    if bundle is not None:
        return LocalEncoder(Bundle.open(bundle), engine=engine, decoding=decoding)
    assert server is not None
    return TritonEncoder(server, bundle=name, transport=protocol)


def _with_head(base: Path | None, head: Path, out: Path) -> Path:
    from cirrus_client.gallery.new_head import bundle_with_head

    if base is None:
        raise typer.BadParameter("--head goes on the backbone of a bundle: give --bundle")
    check_free(out)
    if (out / MANIFEST).exists() and not (out / BUNDLE).exists():
        raise GalleryError(f"gallery {out} was embedded without --head; embed into another folder")
    return bundle_with_head(Bundle.open(base), head, out / BUNDLE).root


def _repository(path: Path) -> Path:
    """The model repository that a path stands for: itself, or a suggester's, or a good bundle's."""
    if any(path.glob("*/config.pbtxt")):
        return path
    own = path / "triton" / "python"
    return own if (own / "suggest" / "config.pbtxt").is_file() else Bundle.open(path).root / "triton" / "python"


def _agreement(built: IndexManifest) -> str:
    if built.agreement is None:
        return "" if built.kind is SearchKind.EXACT else ", agreement with exact search not measured"
    found = built.agreement
    return f", top-{found.k} agreement with exact search {found.share:.1%} ({found.queries} queries: {found.source})"


def _item(space: SpaceSpec) -> str:
    vectors = "" if space.vectors == 1 else f"{space.vectors} vectors an image, "
    return f"{vectors}width {space.dim}"


def _match_table(matches: list[Match]) -> Table:
    table = Table()
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("image", overflow="fold")
    for match in matches:
        table.add_row(str(match.rank), f"{match.score:.4f}", match.image)
    return table


def _report_gallery(summary: GallerySummary, out: Path) -> None:
    _out.print(f"{out}: {summary.embedded:,} images embedded, {summary.new:,} files dealt with in this run")
    if summary.rejected:
        _out.print(f"{len(summary.rejected):,} files were rejected:")
        for item in summary.rejected[:20]:
            _out.print(f"  {item.file.path}: {item.reason}", markup=False)
        if len(summary.rejected) > 20:
            _out.print(f"  ... all of them in {out / 'rejected'}")
