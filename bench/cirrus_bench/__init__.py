"""Measure speed and retrieval quality, and write reports."""
