"""`python -m data.pubmed`."""

from data.pubmed.pubmed import main
from minibio.run import errors

if __name__ == "__main__":  # worker processes import this file too
    errors.run(main, "data.pubmed")
