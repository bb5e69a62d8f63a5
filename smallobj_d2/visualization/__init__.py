"""Pictures: sheets of draws and of detections."""
