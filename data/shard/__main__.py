"""`python -m data.shard`."""

from minibio.run import errors


def main(argv=None) -> int | None:
    """Run the command; imported here, so that an interrupt of the import is one line too."""
    from data.shard import shard

    return shard.main(argv)


if __name__ == "__main__":  # worker processes import this file too
    errors.run(main, "data.shard")
