"""Segmentation of new scans with trained models, and the output folder of `predict`."""
