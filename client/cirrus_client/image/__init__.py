"""From untrusted image bytes to model pixels."""
