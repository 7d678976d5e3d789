"""Synthetic abdominal CT: from an anatomy in mm to DICOM series with their reference."""
