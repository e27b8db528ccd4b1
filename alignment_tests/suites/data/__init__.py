"""The data pipeline, post-processing and average precision."""
