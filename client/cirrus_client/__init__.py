"""The light client of Cirrus: encode composed queries, search a gallery. It never imports torch."""
