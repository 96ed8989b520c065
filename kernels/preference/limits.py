"""How many responses of a group the kernels take; what is more takes PyTorch. Imports nothing, so that it can be asked anywhere.

JSD of 10 walks over 252 * 120 * 128 rankings a group, 54 times those of 8, and 11 would be eleven times that. The lattice of 12 is
4,096 sets, 8 for each of 512 threads; of more, the numbers would not stay in registers. A tile of drawn rankings holds all pairs of
responses, and of 64 two targets spill.
"""

EXACT = {"vpd": None, "jsd": 10, "kl": 12, "reverse_kl": 12}  # None: any number
SAMPLED = {"vpd": None, "jsd": 32, "kl": 32, "reverse_kl": 32}


def most_responses(kind: str, method: str) -> int | None:
    """The most responses of a group that a kernel takes; None for any number, 0 without a kernel."""
    return (EXACT if method == "exact" else SAMPLED).get(kind, 0)
