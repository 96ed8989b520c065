"""Training a student on scored responses: PADConfig, rows to batches, PADTrainer."""
