"""Device functions that several operations share."""
