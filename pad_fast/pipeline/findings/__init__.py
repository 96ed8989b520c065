"""What would spoil a run, seen in its first responses: by the doctor, and by the run itself."""
