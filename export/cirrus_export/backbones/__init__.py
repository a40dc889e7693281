"""Frozen vision-language encoders."""
