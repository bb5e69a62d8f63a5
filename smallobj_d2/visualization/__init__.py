"""Pictures: sheets of draws and of detections; plots; documents and their texts."""
