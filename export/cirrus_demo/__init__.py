"""The demo: a rendered clothing catalogue and a small model trained on it, weights included.

`catalogue` writes it in FashionIQ's layout, `weights` gives the committed checkpoints, `train` makes them anew and
`evaluate` measures them on descriptions that training never saw.
"""
