"""Text and where it comes from; each folder is a command: `python -m data.sample --help`."""
