"""The command ``pad-fast benchmark``: answers to the paper's benchmarks, a checker, a judge."""
