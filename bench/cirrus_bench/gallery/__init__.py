"""The cost of embedding a gallery: Cirrus compared with the baseline and with other tools."""
