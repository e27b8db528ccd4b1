"""What Jittor lacks or does badly, computed by kernels of our own."""
