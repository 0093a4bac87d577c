"""Measurements: one module per claim, run as `python -m bench.NAME`."""
