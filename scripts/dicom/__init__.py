"""DICOM: which series are there, their conversion, their output."""
