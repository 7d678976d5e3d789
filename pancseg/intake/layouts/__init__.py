"""Layouts of input: which image and which label make a case, and who the patient is."""
