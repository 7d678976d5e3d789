"""Scores of whole cases: arrays in, numbers out."""
