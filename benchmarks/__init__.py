"""Measures jobq against other Redis job queues, on one machine and in one run: ``python -m benchmarks``."""
