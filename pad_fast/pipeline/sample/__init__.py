"""The phase that samples responses."""
