"""Text and where it comes from; each file runs as a module: `python -m data.sample --help`."""
