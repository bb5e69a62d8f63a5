"""AP by size, and which detections match which annotations."""
