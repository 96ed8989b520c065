"""Listwise losses: distributions over rankings and the divergences between them."""
