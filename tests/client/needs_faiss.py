"""A plug-in that can't be imported without FAISS."""

import faiss  # noqa: F401


class Backend:
    """Nothing but a name."""
