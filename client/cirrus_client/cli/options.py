"""Options that several verbs share, and the encoder that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.names import Transport

if TYPE_CHECKING:
    from cirrus_client.triton.encoder import TritonEncoder

BundleOption = Annotated[Path | None, typer.Option("--bundle", "-b", help="Encode in this process with this bundle.")]
ServerOption = Annotated[str | None, typer.Option("--server", "-s", help="Ask the Triton server at this host:port.")]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Which bundle, if the server has several.", show_default=False)
]
TransportOption = Annotated[
    Transport,
    typer.Option(
        "--transport", "--protocol", help="How to talk to the server. Triton's ports: 8001 for gRPC, 8000 for HTTP."
    ),
]

TrustPlansOption = Annotated[
    bool,
    typer.Option("--trust-plans", help="Run version-compatible TensorRT plans of the bundle: they contain code."),
]


def refuse_given(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Raise BadParameter for the options that are given though they would do nothing."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
    if given:
        raise typer.BadParameter(reason, param_hint=", ".join(f"--{name.replace('_', '-')}" for name in given))


def check_server_options(server: str | None, name: str | None, transport: Transport) -> None:
    """Raise BadParameter for a bundle's name, or another transport, without a server."""
    if name is not None and server is None:
        raise typer.BadParameter("it chooses among the bundles of a --server", param_hint="--name")
    if transport is not Transport.GRPC and server is None:
        raise typer.BadParameter("it is how a --server is asked", param_hint="--transport")


def check_images_root(root: str | None) -> None:
    """Raise BadParameter for a folder of images that is not there. root: a folder, a URL's prefix, or None."""
    if root is not None and "://" not in root and not Path(root).is_dir():
        raise typer.BadParameter(f"{root} is no folder, and no prefix of URLs", param_hint="--root")


def check_encoder_options(
    bundle: Path | Bundle | None, server: str | None, name: str | None, transport: Transport, *, trust_plans: bool
) -> None:
    """Raise BadParameter unless the options name one bundle, or one server, and what belongs to it."""
    if (bundle is None) == (server is None):
        raise typer.BadParameter("give exactly one of them", param_hint="--bundle, --server")
    check_server_options(server, name, transport)
    if trust_plans and bundle is None:
        raise typer.BadParameter("it needs --bundle; a server has loaded its own", param_hint="--trust-plans")


def open_encoder(
    bundle: Path | Bundle | None,
    server: str | None,
    name: str | None,
    transport: Transport,
    *,
    trust_plans: bool = False,
) -> LocalEncoder | TritonEncoder:
    """Return the encoder that the options name. Raises BadParameter as `check_encoder_options` does."""
    check_encoder_options(bundle, server, name, transport, trust_plans=trust_plans)
    if bundle is not None:
        return LocalEncoder(bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, trust_plans=trust_plans))
    assert server is not None
    from cirrus_client.triton.encoder import TritonEncoder  # slow to import

    return TritonEncoder(server, bundle=name, transport=transport)
