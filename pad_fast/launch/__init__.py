"""Starting a command on many processes, with accelerate's launcher or torchrun."""
