"""Judging trained networks: prediction, scores and pictures of a case meet here."""
