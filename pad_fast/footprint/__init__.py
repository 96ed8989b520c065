"""Memory and arithmetic of a step before any weights exist: the true code on fake tensors."""
