"""Compact biomedical transformers, from scratch.

    config, batch    every number of the paper; one row of real tokens
    text/            from token shards to batches
    model/           transformers, and Hugging Face's names for their weights
    distil/          the equations, the objectives, the students
    tasks/           entities, relations, questions
    run/             processes, disks and logs
    report/, bench/  tables, pictures, model cards; speed and memory

README.md beside this file has the reading order. The doors for users of the weights:

    model, tokenizer = minibio.load(directory)
    minibio.save(model, tokenizer, directory)
    batch = minibio.Batch.from_padded(input_ids, attention_mask)

and of fine-tuned directories:

    tagger = minibio.pipeline(directory)
    tagger(text)["entities"]
"""

__version__ = "0.1.0"
__all__ = ["Batch", "load", "pipeline", "save"]


def __getattr__(name: str):
    # on first use: a command's options are read before torch is imported
    if name in ("load", "save"):
        from minibio.model import convert

        return getattr(convert, name)
    if name == "Batch":
        from minibio.batch import Batch

        return Batch
    if name == "pipeline":
        from minibio.tasks.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'minibio' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
