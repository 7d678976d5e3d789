"""Scores of masks and probabilities, statistics over patients, and their tables."""
