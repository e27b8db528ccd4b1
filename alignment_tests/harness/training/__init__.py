"""Training steps: record them, judge them, and find the row that is the cause of the others."""
