"""`python -m data.fetch`."""

from minibio.run import errors


def main(argv=None) -> int | None:
    """Run the command; imported here, so that an interrupt of the import is one line too."""
    from data.fetch import fetch

    return fetch.main(argv)


if __name__ == "__main__":
    errors.run(main, "data.fetch")
