"""The listwise losses: value and gradient of each group of responses in one launch."""
