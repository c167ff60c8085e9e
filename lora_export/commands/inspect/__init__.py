"""What a checkpoint, an adapter or an export directory holds: headers and tables, no values."""
