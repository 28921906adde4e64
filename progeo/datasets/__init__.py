"""Datasets: import of images and ground truth as catalogues, and query sets with their positives."""
