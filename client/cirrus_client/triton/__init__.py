"""Triton: clients of its ensembles, and a server on this machine."""
