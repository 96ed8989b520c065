"""What differs between architectures: the output head, packed rows, and scoring with any causal language model."""
