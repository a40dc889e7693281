"""The search service compared with other tools that find images by an image or a text, over HTTP."""
