"""Small sets of each task's form that a tiny model learns in seconds, and that model."""

import json
import random
from pathlib import Path

import torch

import minibio
from helpers import tiny_config
from minibio.model.heads import Model
from minibio.text.tokenizer import Tokenizer

DISEASES = ["Ulcer", "Sepsis", "Gout", "Colic"]
KINDS = ["disorder", "syndrome"]
FILLERS = ["The", "patient", "had", "no", "sign", "of", "acute", "and", "then", "a"]
VERBS = {"CAUSE": "causes", "CURE": "cures", "NONE": "meets"}
V = 140  # few enough that most words are cut into several pieces
FAST = ["--epochs", "3", "--lr", "3e-3", "--batch", "8", "--threads", "1", "--device", "cpu",
        "--precision", "fp32"]  # fmt: skip


def make_tokenizer() -> Tokenizer:
    marks = ["@ GENE $ @ DISEASE $ < < > > [ [ ] ] ? Which name", "ARG 1 2"]
    return Tokenizer.train(
        [" ".join([*FILLERS, *DISEASES, *KINDS, *VERBS.values(), *marks])] * 3, V
    )


def make_encoder(path, tokenizer, seed=1, head="mlm", **changes):
    """A random model, as train.py leaves one."""
    torch.manual_seed(seed)
    family = changes.pop("family", "bert")
    minibio.save(Model(tiny_config(family, V=tokenizer.V, **changes), head), tokenizer, path)
    return path


HEADS = {"token": ("O", "B-d", "I-d"), "sequence": ("no", "yes"), "span": None}


def make_heads(base):
    """A random model for each head: its answers mean nothing, but they are answers."""
    tokenizer = make_tokenizer()
    for i, (head, labels) in enumerate(HEADS.items()):
        torch.manual_seed(i)
        model = Model(tiny_config("bert", V=tokenizer.V), head, labels)
        with torch.no_grad():
            model.head.classifier.weight.mul_(40)  # opinions that differ from text to text
        minibio.save(model, tokenizer, base / head)
    return base


def tagged(rng, is_typed=False):
    """Fillers with entities of one or two words in between: (words, tags)."""
    words, tags = [], []
    for _ in range(rng.randint(1, 4)):
        fill = rng.choices(FILLERS, k=rng.randint(1, 4))
        name = [rng.choice(DISEASES), *rng.sample(KINDS, k=rng.randint(0, 1))]
        kind = f"-{'skin' if name[0] in DISEASES[:2] else 'joint'}" if is_typed else ""
        words += fill + name
        tags += ["O"] * len(fill) + [f"B{kind}", f"I{kind}"][: len(name)]
    return words, tags


def write_ner(directory, n=(80, 12, 24), is_typed=False, seed=0):
    rng = random.Random(seed)
    directory.mkdir()
    for name, count in zip(("train", "devel", "test"), n, strict=True):
        blocks = [
            "".join(f"{w}\t{t}\n" for w, t in zip(*tagged(rng, is_typed), strict=True))
            for _ in range(count)
        ]
        (directory / f"{name}.tsv").write_text("\n".join(blocks), "utf-8")
    return directory


def related(rng, a, b):
    """A text that marks two entities, and the label that its verb gives."""
    label = rng.choice(list(VERBS))
    before, after = (" ".join(rng.choices(FILLERS, k=2)) for _ in range(2))
    return f"{before} {a} {VERBS[label]} {b} {after}", label


def write_gad(directory, n=(80, 20), seed=0):
    """One fold in BioBERT's form: causes is 1, all else 0."""
    rng = random.Random(seed)
    directory.mkdir(parents=True)
    rows = [related(rng, "@GENE$", "@DISEASE$") for _ in range(sum(n))]
    rows = [(text, int(label == "CAUSE")) for text, label in rows]
    train = "".join(f"{text}\t{label}\n" for text, label in rows[: n[0]])
    test = "".join(f"{i}\t{text}\t{y}\n" for i, (text, y) in enumerate(rows[n[0] :]))
    (directory / "train.tsv").write_text(train, "utf-8")
    (directory / "test.tsv").write_text(f"index\tsentence\tlabel\n{test}", "utf-8")
    return directory


def write_chemprot(directory, n=(72, 16, 24), seed=0):
    """SciBERT's form, with three of the 13 labels."""
    names = {"CAUSE": "ACTIVATOR", "CURE": "INHIBITOR", "NONE": "SUBSTRATE"}
    rng = random.Random(seed)
    directory.mkdir()
    for name, count in zip(("train", "dev", "test"), n, strict=True):
        rows = [related(rng, f"<< {rng.choice(DISEASES)} >>", f"[[ {rng.choice(DISEASES)} ]]")
                for _ in range(count)]  # fmt: skip
        lines = [json.dumps({"text": text, "label": names[label]}) for text, label in rows]
        (directory / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    return directory


def squad(n, seed, first=0):
    """n questions of two snippets each: the answer is the disease."""
    rng, paragraphs, golden = random.Random(seed), [], []
    for i in range(first, first + n):
        name = rng.choice(DISEASES)
        question = f"Which name {' '.join(rng.choices(FILLERS, k=2))} {i} ?"
        for j in range(2):
            before = " ".join(rng.choices(FILLERS, k=rng.randint(1, 5)))
            answer = {"text": name, "answer_start": len(before) + 1}
            paragraphs.append({
                "context": f"{before} {name} {rng.choice(FILLERS)}",
                "qas": [{"id": f"{i:024x}_{j:03d}", "question": question, "answers": [answer]}],
            })  # fmt: skip
        golden.append({"id": f"{i:024x}", "type": "factoid", "body": question,
                       "exact_answer": [[name, name.upper()]]})  # fmt: skip
    return {"data": [{"paragraphs": paragraphs}]}, {"questions": golden}


def write_qa(directory, seed=0):
    """train.json, test.json, golden.json; two questions of the test are in train too."""
    directory.mkdir()
    test, golden = squad(10, seed, first=0)
    train, _ = squad(40, seed + 1, first=100)
    train["data"][0]["paragraphs"] += test["data"][0]["paragraphs"][:4]
    for name, value in (("train", train), ("test", test), ("golden", golden)):
        (directory / f"{name}.json").write_text(json.dumps(value, indent=1), "utf-8")
    return directory


def read_submission(path) -> dict[str, list[str]]:
    """Question -> answers, the best first: the first string of each list, as BioASQ's scorer reads.

    A question without exact_answer has none, and counts as wrong.
    """
    found = {}
    for question in json.loads(Path(path).read_text("utf-8"))["questions"]:
        if question.get("type", "factoid") == "factoid":
            answers = question.get("exact_answer", [])
            answers = [answers] if isinstance(answers, str) else answers
            answers = [[x] if isinstance(x, str) else x for x in answers]
            found[str(question["id"])] = [texts[0] if texts else "" for texts in answers]
    return found
