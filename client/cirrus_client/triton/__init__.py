"""Triton: clients of its ensembles, and a server on this machine."""

from cirrus_client.triton.encoder import AsyncTritonEncoder, TritonEncoder
from cirrus_client.triton.requests import RetryPolicy

__all__ = ["AsyncTritonEncoder", "RetryPolicy", "TritonEncoder"]
