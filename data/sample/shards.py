"""The built-in sample as token shards: what train.py reads where no corpus is named."""

from pathlib import Path

from data.sample.sample import make_sample
from data.shard.shard import shard
from minibio.config import MODELS, SAMPLE
from minibio.run import dist
from minibio.run.dist import Ranks


def sample_shards(directory: Path, ranks: Ranks) -> Path:
    """The sample's texts, tokenizer and token shards; made once, by rank 0, kept in `directory`.

    Returns:
        The directory of the shards.
    """
    shards = directory / "shards"
    if ranks.rank == 0 and not (shards / "meta.json").exists():
        dist.print0(f"sample: making texts and token shards in {directory}")
        make_sample(directory / "text", force=True)
        shard(
            [directory / "text" / "corpus.jsonl"], None, shards,
            length=SAMPLE["mlm"]["length"], train_tokenizer=MODELS["sample-teacher"].V,
        )  # fmt: skip
    dist.barrier(ranks)
    return shards
