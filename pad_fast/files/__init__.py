"""Files that are whole or absent, their checksums, and errors that name the place."""
