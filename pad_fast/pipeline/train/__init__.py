"""The phase that trains a round's student."""
