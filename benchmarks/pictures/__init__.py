"""Pictures of the records; nothing else in the benchmarks needs matplotlib.

``draw.py`` draws all that have records, the others one kind each, and ``style.py`` is what they
share.
"""
