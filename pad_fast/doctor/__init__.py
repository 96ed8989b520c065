"""`pad-fast doctor`: what would spoil a run, seen in a few prompts."""
