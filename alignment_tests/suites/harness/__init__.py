"""The harness itself: recording, judging, reporting, and the tools around them."""
