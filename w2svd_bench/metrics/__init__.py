"""Metrics: scores of clips and of corpora, and the feature nets they stand on."""
