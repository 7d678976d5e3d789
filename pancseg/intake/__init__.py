"""DICOM and NIfTI in: the only wing that knows LPS, folders of scanners and patients' names."""
