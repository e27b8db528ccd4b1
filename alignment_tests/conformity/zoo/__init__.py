"""Models that torchvision and Jittor both ship, compared: forward in both modes, gradients, one step of SGD."""
