"""Known defects, whose checks are off. Whoever repairs one sets it to True here."""

# token_logprobs in PyTorch returns a view that ``logps[mask] = 0`` cannot change.
INPLACE_MENDED = False
# Rewards have the same bits in any order of the rows, but not in any memory layout of the logits:
# PyTorch adds a row of a transposed view in another order.
LAYOUT_BITS_MENDED = False
# The JSD of no prompts raises in PyTorch where the other losses give an empty result.
EMPTY_JSD_MENDED = False
