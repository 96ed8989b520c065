"""The phase that samples responses from the student."""
