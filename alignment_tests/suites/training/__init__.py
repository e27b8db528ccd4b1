"""Training steps: losses, assignment, gradients, optimizers, averages, mixed precision."""
