"""The tests, by subject."""
