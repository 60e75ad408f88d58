"""A fine-tuned directory in Python: texts in, the answers of `eval.py predict` out.

    tagger = minibio.pipeline("runs/tiny-ncbi")
    tagger("The patient had gout.")["entities"]
    tagger(["The patient had gout.", {"id": 7, "text": "No sepsis."}])

An input is text, or a dictionary with the keys of predict's lines of JSON (documents.py).
"""

import json
from collections.abc import Iterable
from pathlib import Path

from minibio.run.dist import pick_device
from minibio.run.errors import InputError
from minibio.tasks.documents import Item, parse
from minibio.tasks.predict import CHUNK, Predictor, in_chunks


class Pipeline:
    """A fine-tuned model to be called with texts; `minibio.pipeline` makes it.

    Args:
        directory: of `eval.py ner`, `relation` or `qa`, or any Hugging Face directory with such a
                   head.
        device:    "cuda" | "cpu"; None = cuda if there is one.
        precision: of the products, as `eval.py predict --precision`.
        batch:     texts that the model reads together.
    Raises:
        InputError: the directory is not there, damaged, or has another head.
    """

    def __init__(
        self,
        directory: str | Path,
        device: str | None = None,
        precision: str = "auto",
        batch: int = 32,
    ):
        self.directory = directory
        self.predictor = Predictor(Path(directory), batch, pick_device(device), precision)

    def __repr__(self) -> str:
        return f"<minibio.pipeline of {self.directory}, {self.predictor.head} head>"

    def __call__(self, texts: str | dict | Iterable[str | dict]) -> dict | list[dict]:
        """The answer to one text, or a list of answers to several, in their order.

        Raises:
            InputError: an input is not text, or marks no entities where a relation is asked for.
        """
        if isinstance(texts, str | dict):
            return self([texts])[0]
        if not isinstance(texts, Iterable):
            raise InputError(f"texts is {type(texts).__name__}, expected text or a list of texts")
        items = (self.item(x, f"texts[{i}]") for i, x in enumerate(texts))
        chunks = in_chunks(items, CHUNK * self.predictor.B)
        return [answer for chunk in chunks for answer in self.predictor(chunk)]

    def item(self, text: str | dict, where: str) -> Item | None:
        """One input as `Predictor` takes it; `where` begins a complaint."""
        if not isinstance(text, str | dict):
            kind = type(text).__name__
            raise InputError(f"{where} is {kind}, expected text or a dictionary")
        is_json = isinstance(text, dict)
        try:
            line = json.dumps(text) if is_json else text
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: {error}") from None
        return parse(line, where, self.predictor.head, is_json)
