"""Random cases of the public operations against float64 oracles that share nothing with them.

``python -m tests.fuzz --minutes 20`` runs new cases, ``--case SEED`` repeats one. The test command
runs those of fixed seeds, see test_fuzz.py.
"""
