"""DICOM: series found and read as volumes, SEG and RTSTRUCT as label maps.

The only package that knows DICOM and its LPS coordinates; images leave it as RAS.
"""
