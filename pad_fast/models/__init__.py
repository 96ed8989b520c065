"""What differs between architectures: output heads, packed rows, and scoring with any model."""
