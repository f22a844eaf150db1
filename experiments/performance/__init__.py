"""What ``experiments.bench`` measures: sides that take turns, rows of them, and the page."""
