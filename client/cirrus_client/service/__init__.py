"""The search service: collections of a bundle and an index, answered over HTTP."""
