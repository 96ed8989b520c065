"""Time, memory and error of the operations beside those of other implementations: ``python -m benchmarks --suite cpu|gpu``."""
