"""What the suites share: case tables, pairs of models, trainees, recordings, data sets and runs made for a test."""
