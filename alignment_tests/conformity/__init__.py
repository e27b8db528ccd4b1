"""What Jittor's own models and operators compute beside PyTorch's: measured, kept as JSON, written as a document."""
