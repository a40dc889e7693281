"""`cirrus search`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_jsonable_python

from cirrus_client.cli.console import echo, print_table
from cirrus_client.cli.options import (
    BundleOption,
    NameOption,
    ServerOption,
    TransportOption,
    TrustPlansOption,
    check_images_root,
    open_encoder,
    refuse_given,
)
from cirrus_client.names import Transport
from cirrus_client.retriever import Match, open_retriever
from cirrus_client.service.client import Query, SearchClient
from cirrus_client.service.models import with_base64
from cirrus_client.sheet import check_suffix, contact_sheet, save_sheet

_TEXT_ALONE = "-"
_NOT_OF_A_SERVICE = ("bundle", "server", "name", "transport", "trust_plans", "root", "backend", "sheet")


def search(
    context: typer.Context,
    image: Annotated[
        Path | None, typer.Argument(help=f"Reference image or sketch; '{_TEXT_ALONE}' for a query of text alone.")
    ] = None,
    text: Annotated[str | None, typer.Argument(help='Edit text, like "make it blue".')] = None,
    index: Annotated[Path | None, typer.Option("--index", "-i", help="An index that `cirrus index` wrote.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask the search service at this URL, in the place of --index and its encoder.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="CIRRUS_API_KEY", help="The key of --url; give it in the environment.")
    ] = None,
    collection: Annotated[str | None, typer.Option(help="A collection of --url; the first one by default.")] = None,
    filter: Annotated[
        str | None,
        typer.Option("--filter", help='Only images in it: like {"column": "price", "op": "<", "value": 50}.'),
    ] = None,
    unique: Annotated[str | None, typer.Option(help="Only the best image for each value of this column.")] = None,
    bundle: BundleOption = None,
    server: ServerOption = None,
    name: NameOption = None,
    transport: TransportOption = Transport.GRPC,
    trust_plans: TrustPlansOption = False,
    root: Annotated[
        str | None, typer.Option(help="Where the images are now: a folder, or the prefix of their URLs.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="The FILE.py:Class that the index was built with, if it was; it is run."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of results.")] = 10,
    rerank: Annotated[
        int | None, typer.Option(min=1, help="Order so many of the best anew, by the bundle's reranker.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet of query and results here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Search: this image, but as the text says."""
    if sheet is not None:
        check_suffix(sheet)
    reference = None if image is None or str(image) == _TEXT_ALONE else image
    if (index is None) == (url is None):
        raise typer.BadParameter("give exactly one of them", param_hint="--index, --url")
    if url is not None:
        refuse_given(context, _NOT_OF_A_SERVICE, "it is not for a search service: leave out --url")
        options = {"collection": collection, "filter": _tree(filter), "unique": unique, "rerank": rerank}
        matches = _asked(url, api_key, Query(reference, text), k, options)
    else:
        assert index is not None
        if collection is not None:
            raise typer.BadParameter("a service has it: give --url", param_hint="--collection")
        check_images_root(root)
        encoder = open_encoder(bundle, server, name, transport, trust_plans=trust_plans)
        retriever = open_retriever(encoder, index, images=root, backend=backend, reranker=encoder)
        matches = retriever.search(image=reference, text=text, k=k, filter=_tree(filter), unique=unique, rerank=rerank)
    if as_json:
        typer.echo(_json(matches))
    else:
        _print(matches)
    if sheet is not None:
        save_sheet(contact_sheet(reference, text, matches), sheet)
        echo(f"contact sheet: {sheet}", err=True)


def _json(matches: Sequence[Match]) -> str:
    """Return matches as JSON. Values of columns are those of the service's answers: NaN is null, bytes are base64."""
    plain = [with_base64(asdict(match)) for match in matches]
    return json.dumps(to_jsonable_python(plain, inf_nan_mode="null", fallback=str), indent=2, allow_nan=False)


def _print(matches: Sequence[Match]) -> None:
    """Print a table; a column of the reranker's scores is there if it gave some."""
    reranked = any(match.rerank_score is not None for match in matches)
    rows = [
        (
            str(match.rank),
            f"{match.score:.4f}",
            *(["-" if match.rerank_score is None else f"{match.rerank_score:.4f}"] if reranked else []),
            match.image,
        )
        for match in matches
    ]
    names = ("rank", "score", *(["rerank"] if reranked else []), "image")
    print_table(names, rows, right=names[:-1])


def _tree(filter: str | None) -> Any:
    try:
        return None if filter is None else json.loads(filter)
    except ValueError as error:
        raise typer.BadParameter(f"it is not JSON: {error}", param_hint="--filter") from None


def _asked(url: str, key: str | None, query: Query, k: int, options: dict[str, Any]) -> list[Match]:
    with SearchClient(url, key=key) as client:
        (result,) = client.search_many([query], k=k, **options).results
    return [
        Match(item.rank, item.id, item.score, f"{client.url}{item.image}", item.metadata, item.rerank_score)
        for item in result.items
    ]
