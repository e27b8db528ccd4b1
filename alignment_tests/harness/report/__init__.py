"""A report for people and for machines: terminal, Markdown, HTML, JUnit, plots, and scripts that reproduce."""
