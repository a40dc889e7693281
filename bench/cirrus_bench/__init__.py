"""What it costs to embed a gallery, side by side with the papers' way."""
