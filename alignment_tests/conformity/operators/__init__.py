"""Jittor's layers and functions beside their PyTorch counterparts, over a grid of arguments."""
