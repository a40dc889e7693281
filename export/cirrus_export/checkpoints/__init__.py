"""Read checkpoints as their authors' code saved them."""
