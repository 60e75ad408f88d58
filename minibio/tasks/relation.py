"""Relations (section 5.1): does the sentence state one between two marked entities, and which?

    GAD          ... polymorphism in @GENE$ is related to @DISEASE$ ...     1
    CHEMPROT     << EGFR >> inhibitors such as [[ gefitinib ]] ...          INHIBITOR
    CPR          @CHEMICAL$ inhibits @GENE$ ...                             CPR:4, or false

A sentence is one sequence, [CLS] pieces [SEP], and one label. The marks stay as the file has them;
`anonymise` puts names in place of marked entities, as BioBERT's preparation does. A sentence longer
than the model is cut so that both entities stay inside (`around`). The labels are those of the
training file, since a test file may lack one (CHEMPROT's does, F56).
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn

from minibio.batch import Batch
from minibio.config import Recipe
from minibio.model.heads import Model
from minibio.run import fingerprint
from minibio.run.dist import print0
from minibio.run.errors import InputError
from minibio.run.files import real, staged_file
from minibio.tasks.finetune import SETS, Task
from minibio.tasks.metrics import relation_scores
from minibio.tasks.reading import HALF, cut, forward, json_object, read_lines
from minibio.text.tokenizer import Tokenizer

EXPECTED = "lines of sentence TAB label, or of JSON with text and label"
FIRST, SECOND = re.compile(r"<< (.*?) >>"), re.compile(r"\[\[ (.*?) \]\]")
# @GENE$; @CHEM-GENE$: one mention is both; BC6ENTC and BC6ENTG of ChemProt's other preparations
NAME = re.compile(r"@[A-Z0-9][A-Z0-9-]*\$|\bBC6ENT[CG]\b")
UNMARKED = "marks no two entities, expected << >> and [[ ]], or names like @GENE$ and @DISEASE$"
FILES = {"train": ("train",), "dev": ("dev", "devel"), "test": ("test",)}
SUFFIXES = (".tsv", ".jsonl", ".txt")  # SciBERT's release calls its JSON lines .txt

# BioCreative VI: the groups of relations that are scored, micro-averaged; "false" is everything
# else. Lee et al.'s five classes, of the same corpus as the 13 (F56).
CPR = {
    "CPR:3": ("UPREGULATOR", "ACTIVATOR", "INDIRECT-UPREGULATOR"),
    "CPR:4": ("DOWNREGULATOR", "INHIBITOR", "INDIRECT-DOWNREGULATOR"),
    "CPR:5": ("AGONIST", "AGONIST-ACTIVATOR", "AGONIST-INHIBITOR"),
    "CPR:6": ("ANTAGONIST",),
    "CPR:9": ("SUBSTRATE", "PRODUCT-OF", "SUBSTRATE_PRODUCT-OF"),
}
GROUP = {label: group for group, labels in CPR.items() for label in labels}
# labels that state no relation: GAD's, BioBERT's, BLURB's, DDI's, those of relation sets at large
NEGATIVE = re.compile(
    r"0|cpr:10|(\w+[-_ ])?(false|none|negative)|n|no|not|na|n/a|null|no[-_ ]?relation(ship)?"
    r"|not[-_ ]related|unrelated",
    re.IGNORECASE,
)


class Example(NamedTuple):
    """A sentence with two marked entities."""

    text: str
    label: str | None  # None: unknown
    spans: tuple[tuple[int, int], tuple[int, int]]  # characters of both, marks included
    names: tuple[str, str] | None = None  # what `anonymise` calls them, where the file says


class Feature(NamedTuple):
    """An example as the model reads it."""

    tokens: list[int]  # (T,) [CLS] pieces [SEP]
    label: str | None


# reading


def entities(text: str) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The characters (start, end) of both marked entities, marks included; None if not two.

    << >> and [[ ]] come first; where there is no such pair, names such as @GENE$, the first and the
    last of them. A single @CHEM-GENE$ is both at once.
    """
    first, second = FIRST.search(text), SECOND.search(text)
    if first and second and (first.end() <= second.start() or second.end() <= first.start()):
        return first.span(), second.span()
    names = [match.span() for match in NAME.finditer(text)]
    if len(names) > 1 or (names and "-" in text[slice(*names[0])]):
        return names[0], names[-1]
    return None


def marked(text: str, where: str = "the text") -> Example:
    """A text with marks, without a label.

    Raises:
        InputError: it does not mark two entities; `where` begins the message.
    """
    spans = entities(text)
    if spans is None:
        raise InputError(f"{where} {UNMARKED}")
    return Example(text, None, spans)


def read(path: str | Path, skip_unmarked: bool = False) -> list[Example]:
    """The examples of a file, in any of the published forms.

    TSV: sentence TAB label, or a header line and the columns it names (index, sentence, label) in
    any order; fields that a CSV writer quoted for quotes within are read as it meant them. A label
    that is a whole number as a float, 1.0, is that number.
    JSON lines: "text" or "sentence", and "label"; "types" may name the kinds of << >> and [[ ]]:
    ["CHEMICAL", "GENE"].

    Args:
        skip_unmarked: True = lines that mark no two entities, as BioBERT's preparation of CHEMPROT
            has some, are left out, and their number is printed.
    Raises:
        InputError: the file cannot be read, is not UTF-8, a line lacks a column or key, has an
            empty label or marks no two entities, or there is no example.
    """
    examples, header = [], None
    unmarked = []  # numbers of lines
    for number, line in read_lines(path, EXPECTED):
        where = f"{path}: line {number}"
        if not line.strip():
            continue
        columns = line.split("\t")
        if line.startswith("{") and len(columns) == 1:
            text, label, names = from_json(line, where)
        else:
            columns = [unquoted(column) for column in columns]
            names = [name.strip().lower() for name in columns]
            is_first = not examples and not unmarked and header is None
            if is_first and {"label", "sentence", "text"} & set(names):
                header = names
                if "label" not in header:
                    raise InputError(f"{where}: the header names no column label: {line[:40]!r}")
                continue
            (text, label), names = from_columns(columns, header, where), None
        if not label:
            raise InputError(f"{where} has an empty label")
        spans = entities(text)
        if spans is None:
            unmarked.append(number)
        else:
            examples.append(Example(text, label, spans, names))
    if unmarked and not skip_unmarked:
        raise InputError(
            f"{path}: line {unmarked[0]} {UNMARKED}; lines like it: {len(unmarked)}, which "
            "--skip-unmarked leaves out"
        )
    if unmarked:
        print0(f"{path}: lines that mark no two entities, left out: {len(unmarked)}")
    if not examples:
        raise InputError(f"{path} holds no example, expected {EXPECTED}")
    return examples


def from_columns(columns: list[str], header: list[str] | None, where: str) -> tuple[str, str]:
    """Text and label of one line of a TSV."""
    names = header or ["sentence", "label"]
    if len(columns) != len(names):
        raise InputError(
            f"{where} has {len(columns)} columns, expected {len(names)}: {' TAB '.join(names)}"
        )
    row = dict(zip(names, columns, strict=True))
    text = row.get("sentence", row.get("text"))
    if text is None:
        raise InputError(f"{where}: the header names no column sentence or text")
    return text, label_of(row["label"])


def unquoted(field: str) -> str:
    """A field as a CSV writer was given it: "a ""b"" c" is a "b" c. Other quotes stay."""
    inner = field[1:-1]
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"' and '""' in inner
    if not is_quoted or '"' in inner.replace('""', ""):
        return field
    return inner.replace('""', '"')


def label_of(value: str | float) -> str:
    """A label as text; 1.0 is 1, as a column of numbers with a gap is written."""
    label = str(value).strip()
    return label.split(".")[0] if re.fullmatch(r"-?\d+\.0+", label) else label


def from_json(line: str, where: str) -> tuple[str, str, tuple[str, str] | None]:
    """Text, label and the entities' names of one line of JSON."""
    record = json_object(line, where)
    text, label = record.get("text", record.get("sentence")), record.get("label")
    if (
        not isinstance(text, str)
        or not isinstance(label, str | int | float)
        or isinstance(label, bool)
    ):
        raise InputError(f"{where} is {line[:40]!r}, expected text and label")
    if HALF.search(f"{text}{label}"):
        raise InputError(f"{where} has half a surrogate pair, which is not a character")
    types = record.get("types")
    if types is None:
        return text, label_of(label), None
    if not (
        isinstance(types, list)
        and len(types) == 2
        and all(isinstance(kind, str) and NAME.fullmatch(f"@{kind}$") for kind in types)
    ):
        raise InputError(f'{where}: types is {types!r}, expected two like ["CHEMICAL", "GENE"]')
    return text, label_of(label), tuple(f"@{kind}$" for kind in types)


def read_sets(directory: str | Path, skip_unmarked: bool = False) -> dict[str, list[Example]]:
    """train and test of a directory, and dev where there is one, whatever their form.

    Raises:
        InputError: train or test is missing, a file is damaged, or train has a single label.
    """
    directory, sets = Path(directory), {}
    for name, stems in FILES.items():
        paths = [directory / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        found = [path for path in paths if path.is_file() and path.stat().st_size]
        if found:
            sets[name] = read(found[0], skip_unmarked)
        elif name != "dev":  # BioBERT's folds have an empty dev.tsv
            raise InputError(f"{directory} has no {paths[0].name} or {name}.jsonl")
    if len(label_names(sets["train"])) < 2:
        raise InputError(f"{directory}: train has only the label {sets['train'][0].label!r}")
    return sets


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """The labels that occur, in alphabetical order: the same in every run (F50)."""
    return tuple(sorted({example.label for example in examples}))


# sets


def folds(directory: str | Path) -> list[Path]:
    """The directories 1, 2, ... of a set in folds, in numerical order; [] where there is none."""
    found = [path for path in Path(directory).iterdir() if path.is_dir() and path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def whole(directory: str | Path, skip_unmarked: bool = False) -> list[Example]:
    """Every example once: the test files of all folds together, or train and test of one set."""
    parts = folds(directory)
    if parts:
        return [example for part in parts for example in read_sets(part, skip_unmarked)["test"]]
    sets = read_sets(directory, skip_unmarked)
    return [*sets["train"], *sets["test"]]


def split(
    examples: Sequence[Example], seed: int, share: float = 0.1
) -> tuple[list[Example], list[Example]]:
    """Train and test: `share` of the examples at random, as the paper splits GAD (F54).

    Both keep the file's order. The paper's own seed is not known. GAD holds some sentences twice,
    and a random split may put one on each side.
    """
    n = round(share * len(examples))
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    is_test = np.zeros(len(examples), dtype=bool)
    is_test[rng.permutation(len(examples))[:n]] = True
    pairs = list(zip(examples, is_test, strict=True))
    return [x for x, test in pairs if not test], [x for x, test in pairs if test]


def five_classes(examples: Sequence[Example]) -> list[Example]:
    """CHEMPROT's 13 relations as the five groups of BioCreative VI.

    Raises:
        InputError: a label is none of the 13.
    """
    other = sorted({x.label for x in examples} - set(GROUP))
    if other:
        raise InputError(f"the label {other[0]!r} is none of CHEMPROT's: {', '.join(GROUP)}")
    return [x._replace(label=GROUP[x.label]) for x in examples]


def anonymise(example: Example) -> Example:
    """Names in place of << entities >> and [[ entities ]]: @ARG1$ and @ARG2$, or @CHEMICAL$ and
    @GENE$ where the file says which is which. A sentence that has names already keeps them.
    """
    (a, b), (c, d) = example.spans
    text = example.text
    if NAME.fullmatch(text[a:b]):
        return example
    names = example.names or ("@ARG1$", "@ARG2$")
    parts = sorted([(a, b, names[0]), (c, d, names[1])])
    (a, b, left), (c, d, right) = parts
    text = text[:a] + left + text[b:c] + right + text[d:]
    at = a + len(left) + c - b  # where the right one begins now
    spans = ((a, a + len(left)), (at, at + len(right)))
    return example._replace(text=text, spans=spans if left == names[0] else spans[::-1])


def mark(text: str, first: tuple[int, int], second: tuple[int, int]) -> Example:
    """A text with its two entities marked << >> and [[ ]], for a model that has learnt these.

    Args:
        first, second: characters (start, end) of each, apart from each other.
    Raises:
        InputError: they are empty, outside the text, or overlap.
    """
    for a, b in (first, second):
        if not 0 <= a < b <= len(text):
            raise InputError(f"entity {a}..{b} is not in a text of {len(text)} characters")
    if max(first[0], second[0]) < min(first[1], second[1]):
        raise InputError(f"entities {first} and {second} overlap, expected them apart")
    parts = sorted([(*first, "<< ", " >>"), (*second, "[[ ", " ]]")], reverse=True)
    for a, b, left, right in parts:  # from the last, so that what is before keeps its place
        text = text[:a] + left + text[a:b] + right + text[b:]
    shift = 6 * (first > second)  # << and >>, or [[ and ]], are before
    a, c = first[0] + shift, second[0] + 6 - shift
    return Example(
        text, None, ((a, a + first[1] - first[0] + 6), (c, c + second[1] - second[0] + 6))
    )


# to pieces


def make_features(examples: Sequence[Example], tokenizer: Tokenizer, length: int) -> list[Feature]:
    """Each example as token ids, both entities inside.

    Args:
        length: tokens of the longest sequence, [CLS] and [SEP] included; 4 or more.
    """
    features = []
    for example in examples:
        pieces = cut(example.text, tokenizer)
        spans = sorted(example.spans)
        left, right = (pieces.inside(*span) for span in spans)
        places = around(len(pieces.ids), left, right, length - 2)
        ids = [pieces.ids[i] for i in places]
        features.append(Feature([tokenizer.cls_id, *ids, tokenizer.sep_id], example.label))
    return features


def around(n: int, left: range, right: range, room: int) -> list[int]:
    """The pieces to keep of n, at most `room`, so that both entities are among them.

    1. Everything, if it fits.
    2. Else both entities and all between them, if that fits, and as much before as behind; what one
       side does not need the other gets.
    3. Else the entities, and from between them as much after the left one as before the right one.
    4. Else (not even the entities fit) the left one's beginning and the right one's end, half
       and half, unless one needs less.

    Args:
        left, right: the pieces of the entities, in the order of the text.
    """
    if n <= room:
        return list(range(n))
    start, end = left.start, max(left.stop, right.stop)  # the core: entities and between
    spare = room - (end - start)
    if spare >= 0:
        first = max(0, min(start - spare // 2, n - room))
        return list(range(first, first + room))
    a, b = len(left), len(right)
    between = room - a - b
    head = a + (between + 1) // 2 if between >= 0 else min(a, max(room // 2, room - b))
    return [*range(start, start + head), *range(end - (room - head), end)]


def collate(features: Sequence[Feature], labels: Sequence[str] | None = None) -> Batch:
    """Features as one row.

    Args:
        labels: names of the K classes, to fill `Batch.labels` (B,) with each sequence's class, -100
            (left out of the loss) for a label that is none of them; None = leave it empty.
    """
    ids = None
    if labels is not None:
        index = {name: k for k, name in enumerate(labels)}
        ids = [index.get(feature.label, -100) for feature in features]
    return Batch.from_sequences([feature.tokens for feature in features], labels=ids)


def predict(
    model: nn.Module, features: Sequence[Feature], B: int, device, autocast, multi_label=False
) -> torch.Tensor:
    """(n, K) float32: the probabilities of each feature's classes, in the features' order.

    Args:
        B:           features a batch.
        autocast:    makes the context the model runs in.
        multi_label: False = softmax, one class a feature; True = sigmoid, each class by itself.
    """
    activation = torch.sigmoid if multi_label else partial(torch.softmax, dim=1)
    found = [None] * len(features)
    for chosen, _, logits in forward(model, features, collate, B, device, autocast):  # (B, K)
        for i, row in zip(chosen, activation(logits.float()).cpu(), strict=True):
            found[i] = row
    return torch.stack(found) if found else torch.zeros(0, 0)


# the task


class RelationTask(Task):
    """Relations of a directory of train, dev and test files, or of folds of them.

    Args:
        fold:      number of the fold, where the directory has folds.
        at_random: a tenth of all examples is the test set, drawn from the seed, as in the paper
                   (F54); there is no development set then.
        classes:   5 = CHEMPROT's 13 relations as BioCreative's five groups.
        anonymised: names in place of << >> and [[ ]].
        negative:  the labels that state no relation; None = those that look like it (`NEGATIVE`).
        skip_unmarked: lines that mark no two entities are left out.
    Raises:
        InputError: the files, or these choices, do not fit.
    """

    name, head = "relation", "sequence"

    def __init__(
        self,
        directory: Path,
        *,
        fold: int | None = None,
        at_random: bool = False,
        classes: int | None = None,
        anonymised: bool = False,
        negative: Sequence[str] | None = None,
        skip_unmarked: bool = False,
    ):
        self.sets = chosen_sets(directory, fold, at_random, skip_unmarked)
        if classes == 5:
            self.sets = {name: five_classes(x) for name, x in self.sets.items()}
        if anonymised:
            self.sets = {name: [anonymise(x) for x in xs] for name, xs in self.sets.items()}
        labels = label_names([x for examples in self.sets.values() for x in examples])
        for label in negative or ():
            if label not in labels:
                raise InputError(f"--negative {label}: the labels are {', '.join(labels)}")
        self.negative = (
            [x for x in labels if NEGATIVE.fullmatch(x)] if negative is None else negative
        )
        self.average = "micro" if self.negative or set(labels) <= set(CPR) else "macro"
        print0(
            f"{directory}: labels that state no relation: {', '.join(self.negative) or 'none'}; "
            f"the main figure is {self.average}"
        )
        self.has_devel = "dev" in self.sets
        self.choices = {
            "data": real(directory).name,
            "fold": fold,
            "at_random": at_random,
            "anonymise": anonymised,
        }
        if negative is not None:
            self.choices["negative"] = list(negative)

    def prepare(self, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self.check_length(recipe, 4, "[CLS], a piece of each entity, [SEP]")
        self.recipe, self.parts = recipe, self.sets
        if self.choices["at_random"]:
            train, test = split(self.sets["all"], recipe.seed)
            self.parts = {"train": train, "test": test}
        self.labels = label_names(self.parts["train"])
        self.describe()
        self.features = {
            name: make_features(examples, tokenizer, recipe.length)
            for name, examples in self.parts.items()
        }
        self.examples = self.features["train"]
        self.lengths = [len(f.tokens) for f in self.examples]
        self.facts = {
            **self.choices,
            "classes": len(self.labels),
            "counts": {name: len(x) for name, x in self.parts.items()},
            "data_is": fingerprint.of_value((self.parts,)),
        }

    def describe(self) -> None:
        """Print the sets, and the labels that train lacks."""
        sets = {"devel" if name == "dev" else name: x for name, x in self.parts.items()}
        sizes = ", ".join(f"{name} {len(sets[name]):,}" for name in sorted(sets, key=SETS.index))
        labels = Counter(x.label for x in sets["train"])
        labels = ", ".join(f"{label}: {n:,}" for label, n in labels.most_common())
        texts = {name: [x.text for x in examples] for name, examples in sets.items()}
        self.print_sets(f"examples: {sizes}; labels of train: {labels}", texts, "sentences")
        for name, examples in sets.items():
            new = sorted(set(label_names(examples)) - set(self.labels))
            if new:
                print0(f"{name} has labels that train lacks, which count as missed: {new}")

    def collate(self, examples: Sequence[Feature]) -> Batch:
        return collate(examples, self.labels)

    def score(self, name: str, model: Model) -> tuple[dict, list[str], torch.Tensor]:
        """Scores, predicted labels and (n,) their probabilities on the set `name`."""
        p = predict(model, self.features[name], *self.inference(model))  # (n, K)
        found = [self.labels[k] for k in p.argmax(1).tolist()]
        gold = [x.label for x in self.parts[name]]
        return relation_scores(gold, found, self.negative), found, p.amax(1)

    def test(self, model: Model, out: Path) -> dict:
        scores, found, p = self.score("test", model)
        rows = zip(self.parts["test"], found, p.tolist(), strict=True)
        lines = [f"{i}\t{x.label}\t{label}\t{q:.6f}\n" for i, (x, label, q) in enumerate(rows)]
        with staged_file(out / "test.tsv") as staged:
            staged.write_text("index\tgold\tpredicted\tprobability\n" + "".join(lines), "utf-8")
        return {**scores, "main": self.average, "published": published(self.parts["train"])}

    def devel(self, model: Model) -> float:
        return self.score("dev", model)[0][self.average]["f1"]


def chosen_sets(
    directory: Path, fold: int | None, at_random: bool, skip_unmarked: bool = False
) -> dict[str, list[Example]]:
    """The sets of a directory or of one of its folds; {"all": ...} where they are split later."""
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory, expected one of train and test files")
    if at_random:
        return {"all": whole(directory, skip_unmarked)}
    if fold is None:
        if folds(directory):
            raise InputError(
                f"{directory} is in folds; choose one: --fold 1, --fold all, or --split"
            )
        return read_sets(directory, skip_unmarked)
    if not (directory / str(fold)).is_dir():
        raise InputError(f"{directory} has no fold {fold}")
    return read_sets(directory / str(fold), skip_unmarked)


def published(examples: Sequence[Example]) -> bool:
    """Whether the main figure is one that is published for this set.

    The paper's macro for CHEMPROT's 13 (F57); micro for the CPR groups, and for GAD and EU-ADR,
    whose score is that of label 1.
    """
    labels = set(label_names(examples))
    names = {x.text[slice(*span)] for x in examples for span in x.spans}
    is_gene_disease = labels == {"0", "1"} and names == {"@GENE$", "@DISEASE$"}
    return is_gene_disease or labels <= set(GROUP) or labels <= {*CPR, "false", "False"}
