"""An index in a collection of Milvus: on a server, or embedded in this process (milvus-lite)."""
