"""How far long work has come: a line that moves on a terminal, else lines of a log."""
