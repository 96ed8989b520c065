"""The four benchmarks of the paper: their questions, and answers as the official tools read them.

:data:`pad_fast.evaluation.benchmarks.catalogue.BENCHMARKS` is the one list of them. Nothing here
runs a model: generating answers and judging them is in ``pad_fast/pipeline/benchmark/``.
"""
