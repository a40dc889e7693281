"""From a trained composed-image-retrieval checkpoint to a bundle that can be served."""
