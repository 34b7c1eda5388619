"""Evaluation: cells and their grid; sample, then score, leave a record."""
