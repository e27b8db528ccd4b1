"""The comparisons that a planted fault must be found by."""
