"""`cirrus verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cirrus_client.bundle import CONTRACT as BUNDLE
from cirrus_client.bundle import Bundle
from cirrus_client.canary import read_canary
from cirrus_client.cli.console import echo, print_table
from cirrus_client.cli.options import NameOption, TransportOption, check_server_options
from cirrus_client.cli.wording import described
from cirrus_client.errors import BundleError
from cirrus_client.names import Transport
from cirrus_client.plans import Library, has_plans, plan_file, read_plans
from cirrus_client.replay import TritonRunner, replay
from cirrus_client.suggest import CONTRACT as SUGGESTER
from cirrus_client.suggest import TritonSuggester, read_suggester
from cirrus_client.suggest_canary import check_texts, read_suggest_canary
from cirrus_client.triton.repository import RECORD, REPOSITORIES, read_repository
from cirrus_client.triton.served_names import ServedNames


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle, a suggester, or what `cirrus repository` wrote.")],
    server: Annotated[
        str | None,
        typer.Option("--server", "-s", help="Hold the Triton server at this host:port to the bundle's canary as well."),
    ] = None,
    name: NameOption = None,
    transport: TransportOption = Transport.GRPC,
) -> None:
    """Check that all files that searching and serving read are as they were written, and the fidelity gate passed.

    With --server, replay the bundle's golden inputs there, and compare every stage with the original's outputs; of a
    suggester, the texts of its golden pairs.
    """
    check_server_options(server, name, transport)
    if server is not None and (bundle / SUGGESTER).exists():
        _hold_suggester(server, bundle, name, transport)
        return
    if server is not None:
        _hold(server, name, transport, Bundle.open(bundle))
        return
    if (bundle / RECORD).exists() and not (bundle / BUNDLE).exists():
        spec = read_repository(bundle)
        echo(f"{bundle}: whole ({len(spec.files)} files match their sha256), {spec.flavour} flavour")
    elif (bundle / SUGGESTER).exists():
        suggester = read_suggester(bundle)
        count = len(suggester.files) + _verified_repositories(bundle)
        echo(f"{bundle}: whole ({count} files match their sha256), fidelity gate passed; {suggester.precision}")
    else:
        _verify_bundle(Bundle.open(bundle))


def _hold(server: str, name: str | None, transport: Transport, bundle: Bundle) -> None:
    canary = read_canary(bundle)
    if canary is None:
        raise BundleError(f"bundle {bundle.root}: has no canary, as older exports; export it again", path=bundle.root)
    spec = bundle.spec if name is None else bundle.spec.model_copy(update={"name": name})
    names = ServedNames(spec, shared=name is not None)
    runner = TritonRunner(server, names, transport=transport)
    runner.check_live()
    result = replay(canary, bundle.spec, runner)
    rows = [(check.stage, "-" if check.problem else f"{check.cosine:.6f}") for check in result.stages]
    print_table(("stage", "cosine"), rows, right=("cosine",))
    result.check(f"the server at {server}")
    echo(f"{server}: every stage of {bundle.spec.name} answers as the original does")


def _hold_suggester(server: str, root: Path, name: str | None, transport: Transport) -> None:
    if name is not None or transport is not Transport.GRPC:
        raise typer.BadParameter(
            "leave it away: a server has one suggester, called over gRPC", param_hint="--name, --transport"
        )
    spec = read_suggester(root)
    canary = read_suggest_canary(root, spec)
    if canary is None:
        raise BundleError(f"suggester {root}: has no canary, as older exports; export it again", path=root)
    check_texts(canary, TritonSuggester(server), f"the server at {server}")
    echo(f"{server}: all {len(canary.pairs)} golden pairs get the text that {spec.name} wrote at its export")


def _verify_bundle(bundle: Bundle) -> None:
    spec = bundle.spec
    count = len(spec.files) + _verified_repositories(bundle.root)
    records = [read_plans(bundle.root, library) for library in Library if has_plans(bundle.root, library)]
    for record in records:
        count += len([plan_file(bundle, record, graph) for graph in record.plans])
    echo(
        f"{bundle.root}: whole ({count} files match their sha256), fidelity gate passed; recipe {spec.recipe} on "
        f"{spec.backbone}, {spec.precision}, {described(spec.space)}"
    )
    for record in records:
        run = "compared with their graphs on that GPU" if record.were_run else "not run yet"
        refused = f"; no plan of {', '.join(record.refused)}" if record.refused else ""
        echo(f"{bundle.root}: {len(record.plans)} plans {record.origin}; {run}{refused}")


def _verified_repositories(root: Path) -> int:
    """Check all model repositories of a bundle or a suggester, and return how many files they have."""
    folder = root / REPOSITORIES
    return sum(len(read_repository(path).files) for path in sorted(folder.iterdir())) if folder.exists() else 0
