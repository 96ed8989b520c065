"""A package, so that a folder of this name that another project installs is never taken for it."""
