"""`pad-fast plan`: memory and time of a run before it starts."""
