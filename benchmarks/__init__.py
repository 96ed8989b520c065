"""Time, memory and error of the operations next to other implementations: see README.md here."""
