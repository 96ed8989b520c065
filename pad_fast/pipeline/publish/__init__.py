"""The cards of what a run made, and its way to the Hugging Face Hub."""
