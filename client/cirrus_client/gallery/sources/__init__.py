"""Kinds of sources, one per file: folders, lists, URLs, tars and Parquet files."""
