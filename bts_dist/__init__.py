"""The model, the training loop, scoring and reports.  Runs with no cluster at all."""
