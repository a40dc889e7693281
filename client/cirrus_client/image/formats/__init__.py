"""One module for each image format: what the file says about its image, and which of its bytes decide the pixels."""
