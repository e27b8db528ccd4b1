"""What the console script ``alignment`` does itself; see ``alignment_tests.cli``."""
