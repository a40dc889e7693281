"""Measure retrieval quality on the official files of the benchmarks that CIR papers report."""
