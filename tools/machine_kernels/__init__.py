"""Kernels that tools/machine_times.py measures, and what the static model assumes of each."""
