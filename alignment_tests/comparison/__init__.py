"""Two frameworks' runs side by side: records read, evidence measured, a verdict, plots and one page."""
