"""What is trained on: files to structures to batches."""
