"""Datasets: COCO files in, findings about them, image files, and synthetic scenes."""
