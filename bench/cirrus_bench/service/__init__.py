"""The whole search service, HTTP in and JSON out, compared with the bare engine and bare FAISS."""
