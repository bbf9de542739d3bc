"""The parts of `benchmarks/regimes.py`: which method is best for which kind of clients."""
