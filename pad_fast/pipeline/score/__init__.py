"""The phase in which the teacher scores responses."""
