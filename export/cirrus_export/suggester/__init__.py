"""MTST's edit writer, a product beside search: two images in, the edit text between them out."""
