"""Benchmarks. `python bench/layer_throughput.py` is the front door."""
