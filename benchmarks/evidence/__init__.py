"""The study of when preference distillation helps: ``python -m benchmarks.evidence``."""
