"""The forward pass: layers, parts, whole models, recordings of the public implementation, kernels, weights."""
