"""Simulated patients: from the shapes of an abdomen to DICOM series with their truth."""
