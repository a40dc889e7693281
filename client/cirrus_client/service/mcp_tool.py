"""The search service as a read-only tool of language models, over the Model Context Protocol on stdin and stdout."""

from __future__ import annotations

from typing import Any

from cirrus_client.errors import CirrusError
from cirrus_client.extras import need
from cirrus_client.service.client import AsyncSearchClient

_MOST = 50


def tool_server(client: AsyncSearchClient) -> Any:
    """Return an MCP server with the tool `search_images`. Raises MissingPackage without the extra `mcp`."""
    need("mcp", "the MCP tool")
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations

    from cirrus_client.service.fetch import ImageReader

    server = MCPServer("cirrus")
    reader = ImageReader(max_bytes=0)  # it fetches nothing

    @server.tool(annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
    async def search_images(
        image: str | None = None, text: str | None = None, k: int = 10, id: str | None = None
    ) -> list[dict[str, Any]]:
        """Search a catalogue of images: for one like the given image, but as the text says.

        image: an image file in base64, or as a data: URI of base64. id: an item of an earlier answer, in the place of
        an image. text: the edit, like "the same in blue". k: how many results, at most 50. Each result has an id, a
        score, metadata and a link.
        """
        try:
            given = None if image is None else await reader.read(image)
            (result,) = (await client.search(image=given, text=text, id=id, k=max(1, min(k, _MOST)))).results
        except CirrusError as error:
            raise ToolError(str(error)) from None
        return [
            {"id": item.id, "score": item.score, "metadata": item.metadata, "link": f"{client.url}{item.image}"}
            for item in result.items
        ]

    return server
