"""How many responses of a group the listwise kernels take; PyTorch computes larger groups.

The file imports nothing, so that it can be asked where Triton is not installed.
"""

# None: any number. JSD of 10 responses walks over 252 * 120 * 128 rankings a group, 54 times as
# many as for 8, and 11 would take eleven times more. KL of 12 has 4,096 sets, 8 for each of 512
# threads; with more, the numbers would not stay in registers.
EXACT = {"vpd": None, "jsd": 10, "kl": 12, "reverse_kl": 12}
# A tile of drawn rankings holds all pairs of responses, and that of 64 responses spills on two of
# the four architectures.
SAMPLED = {"vpd": None, "jsd": 32, "kl": 32, "reverse_kl": 32}


def most_responses(kind: str, method: str) -> int | None:
    """The most responses that a kernel takes: None for any number, 0 where there is no kernel."""
    return (EXACT if method == "exact" else SAMPLED).get(kind, 0)
