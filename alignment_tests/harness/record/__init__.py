"""Run a model and record what it does: hooks, traces, and one adapter for each framework."""
