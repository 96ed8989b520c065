"""A killer of runs: SIGKILL at random times in every phase, and every bit compared at the end."""
