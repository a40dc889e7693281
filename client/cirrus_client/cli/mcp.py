"""`cirrus mcp`."""

from __future__ import annotations

from typing import Annotated

import typer

from cirrus_client.service.client import AsyncSearchClient
from cirrus_client.service.mcp_tool import tool_server


def mcp(
    url: Annotated[str, typer.Option(help="The search service.")] = "http://127.0.0.1:8080",
    api_key: Annotated[
        str | None, typer.Option(envvar="CIRRUS_API_KEY", help="Its key; give it in the environment.")
    ] = None,
) -> None:
    """Offer a search service to language models: the MCP tool search_images, on stdin and stdout."""
    tool_server(AsyncSearchClient(url, key=api_key)).run("stdio")
