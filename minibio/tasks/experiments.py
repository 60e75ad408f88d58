"""The paper's three kinds of task as `Task`s: what is read, what a model learns, how it is scored.

    ner        train.tsv, devel.tsv, test.tsv        entities by words, and by word pieces
    relation   train, dev, test; or folds            binary, macro and micro
    qa         files of SQuAD's form                 strict and lenient accuracy, MRR

Each function reads its files once, refuses what is wrong with them before anything is trained, and
returns a maker: tokenizer and recipe -> Task. A scorer writes its predictions beside the model and
returns figures; what they mean is in metrics.py. Read finetune.py before this file.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from minibio.model.heads import Model
from minibio.run.dist import autocast, print0
from minibio.run.errors import InputError
from minibio.run.files import staged_file, write_json
from minibio.tasks import ner, qa, relation
from minibio.tasks.finetune import MakeTask, Recipe, Task
from minibio.tasks.metrics import bioasq_scores, relation_scores
from minibio.text.tokenizer import Tokenizer


def around_a_model(model: Model, recipe: Recipe) -> tuple:
    """What `predict` of a task takes last: examples a batch, device, context of a forward pass."""
    device = next(model.parameters()).device
    return 2 * recipe.batch, device, partial(autocast, recipe.precision, device)


def fingerprint(*values) -> str:
    """What tells data from other data, whatever files it came in."""
    return hashlib.sha256(repr(values).encode()).hexdigest()


# named entities


def ner_task(directory: Path, scheme: str | None = None) -> MakeTask:
    """Entities of a directory of TSV files; `scheme` rewrites the tags that are learnt.

    Raises:
        InputError: the sets are not as `ner.read_sets` wants them.
    """
    sets, found, broken = ner.read_sets(directory, scheme)
    labels = ner.label_names(sets["train"])
    print0(f"{directory}: tags in {found}" + f", {broken} sentences otherwise" * (broken > 0))
    for name in sets:
        new = sorted(set(ner.label_names(sets[name])) - set(labels))
        if new:
            print0(f"{name}.tsv has tags that train.tsv lacks, which count as missed: {new}")

    def make(tokenizer: Tokenizer, recipe: Recipe) -> Task:
        check_length(recipe, 3, "[CLS], a piece, [SEP]")
        windows = {
            name: ner.make_windows(sentences, tokenizer, recipe.length)
            for name, sentences in sets.items()
        }
        counts = {
            name: {"sentences": len(x), "words": sum(len(s.words) for s in x),
                   "windows": len(windows[name]),
                   "pieces": sum(len(w.words) for w in windows[name])}
            for name, x in sets.items()
        }  # fmt: skip

        def found_in(name: str, model: Model) -> list[list[str]]:
            B, device, context = around_a_model(model, recipe)
            return ner.predict(model, windows[name], labels, B, device, context)

        def test(model: Model, out: Path) -> dict:
            found = found_in("test", model)
            words, _ = ner.rejoin(windows["test"], found)
            ner.write_conll(out / "test.conll", sets["test"], words)
            return ner.score(sets["test"], windows["test"], found)

        def devel(model: Model) -> float:
            found = found_in("devel", model)
            return ner.score(sets["devel"], windows["devel"], found)["word"]["f1"]

        return Task(
            "ner", "token", labels, windows["train"], [len(w.tokens) for w in windows["train"]],
            partial(ner.collate, labels=labels), test, devel if "devel" in sets else None,
            {"data": directory.resolve().name, "scheme": scheme or found, "counts": counts,
             "data_is": fingerprint(sets)},
        )  # fmt: skip

    return make


# relations


def relation_task(directory: Path, *, fold: int | None = None, at_random: bool = False,
                  classes: int | None = None, anonymise: bool = False) -> MakeTask:  # fmt: skip
    """Relations of a directory of train, dev and test files, or of folds of them.

    Args:
        fold:      number of the fold, where the directory has folds.
        at_random: a tenth of all examples is the test set, drawn from the seed, as in the paper
                   (F54); there is no development set then.
        classes:   5 = CHEMPROT's 13 relations as BioCreative's five groups.
        anonymise: names in place of << >> and [[ ]].
    Raises:
        InputError: the files, or these choices, do not fit.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory, expected one of train and test files")
    has_folds = bool(relation.folds(directory))
    if at_random:
        sets = {"all": relation.whole(directory)}
    elif has_folds and fold is None:
        raise InputError(f"{directory} is in folds; choose one: --fold 1, --fold all, or --split")
    else:
        if fold is not None and not (directory / str(fold)).is_dir():
            raise InputError(f"{directory} has no fold {fold}")
        sets = relation.read_sets(directory if fold is None else directory / str(fold))
    if classes == 5:
        sets = {name: relation.five_classes(x) for name, x in sets.items()}
    if anonymise:
        sets = {name: [relation.anonymise(x) for x in examples] for name, examples in sets.items()}

    def make(tokenizer: Tokenizer, recipe: Recipe) -> Task:
        check_length(recipe, 4, "[CLS], a piece of each entity, [SEP]")
        parts = sets
        if at_random:
            parts = dict(zip(("train", "test"), relation.split(sets["all"], recipe.seed),
                             strict=True))  # fmt: skip
        labels = relation.label_names(parts["train"])
        features = {
            name: relation.make_features(examples, tokenizer, recipe.length)
            for name, examples in parts.items()
        }

        def scores_of(name: str, model: Model) -> tuple[dict, list[str], torch.Tensor]:
            p = relation.predict(model, features[name], *around_a_model(model, recipe))  # (n, K)
            found = [labels[k] for k in p.argmax(1).tolist()]
            gold = [x.label for x in parts[name]]
            return relation_scores(gold, found, relation.NEGATIVE), found, p.amax(1)

        def test(model: Model, out: Path) -> dict:
            scores, found, p = scores_of("test", model)
            rows = zip(parts["test"], found, p.tolist(), strict=True)
            lines = [f"{i}\t{x.label}\t{label}\t{q:.6f}\n" for i, (x, label, q) in enumerate(rows)]
            with staged_file(out / "test.tsv") as staged:
                staged.write_text("index\tgold\tpredicted\tprobability\n" + "".join(lines), "utf-8")
            return {**scores, "main": main_average(labels)}

        def devel(model: Model) -> float:
            return scores_of("dev", model)[0][main_average(labels)]["f1"]

        data = directory.resolve().name
        return Task(
            "relation", "sequence", labels, features["train"],
            [len(f.tokens) for f in features["train"]],
            partial(relation.collate, labels=labels), test, devel if "dev" in parts else None,
            {"data": data, "fold": fold, "at_random": at_random, "classes": len(labels),
             "anonymise": anonymise, "counts": {name: len(x) for name, x in parts.items()},
             "data_is": fingerprint(parts)},
        )  # fmt: skip

    return make


def main_average(labels: Sequence[str]) -> str:
    """Which average is the figure to be published: the paper's macro for CHEMPROT's 13 (F57), micro
    where some labels state no relation (GAD: the score of label 1) and for the CPR groups."""
    is_micro = set(labels) & set(relation.NEGATIVE) or set(labels) <= set(relation.CPR)
    return "micro" if is_micro else "macro"


# questions


def qa_task(
    train: Path, test_files: Sequence[Path], golden_files: Sequence[Path], *,
    stride: int = 128, order: str = "pooled", allow_overlap: bool = False,
) -> MakeTask:  # fmt: skip
    """Questions in SQuAD's form; several test files are answered one by one and scored together.

    Args:
        golden_files:  the right answers, in BioASQ's form; none = answers without a score.
        order:         of the answers: "pooled" over a question's snippets, or as "released" (F58).
        allow_overlap: questions of train that stand in a test file too are learnt all the same.
    Raises:
        InputError: a file is damaged, a test question has no golden answer in any file, or nothing
            is left to learn.
    """
    passages = qa.read_squad(train)
    tests = {path: qa.read_squad(path) for path in test_files}
    golden = {id: texts for path in golden_files for id, texts in qa.read_golden(path).items()}
    asked = {p.group for x in tests.values() for p in x}
    if golden and not asked & set(golden):
        raise InputError(
            f"{golden_files[0]} has none of the questions of {test_files[0]}; name the golden file "
            f"of the same batch"
        )
    every_test = [p for x in tests.values() for p in x]
    kept, n_questions, n_passages = qa.without_overlap(passages, every_test)
    if n_questions:
        what = f"{n_questions} questions ({n_passages} passages) of {train} stand in a test file"
        print0(f"{what} too: {'learnt all the same' if allow_overlap else 'removed from train'}")
    if not allow_overlap:
        passages = kept
    if not any(p.answers for p in passages):
        raise InputError(f"{train} has no question with an answer to learn")

    def make(tokenizer: Tokenizer, recipe: Recipe) -> Task:
        check_length(recipe, 5, "[CLS], a piece of question and context, two [SEP]")
        windows = qa.make_windows(passages, tokenizer, recipe.length, stride)
        pairs = qa.training_pairs(windows)
        counts = {"questions": len({p.group for p in passages}), "passages": len(passages),
                  "examples": len(pairs), "removed": 0 if allow_overlap else n_questions,
                  "test_questions": len(asked)}  # fmt: skip

        def collate(chosen):
            return qa.collate([w for w, _ in chosen], [answer for _, answer in chosen])

        def test(model: Model, out: Path) -> dict:
            answers, parts = {}, {}
            for path, x in tests.items():
                windows = qa.make_windows(x, tokenizer, recipe.length, stride)
                logits = qa.predict(model, windows, *around_a_model(model, recipe))
                ranked = qa.rank(x, windows, logits, order)
                answers |= ranked
                parts[path.stem] = scores_of(ranked)
            write_json(out / "submission.json", qa.submission(every_test, answers))
            write_json(out / "n_best.json", qa.n_best(answers))
            return {**scores_of(answers), "per_file": parts}

        def scores_of(ranked: dict) -> dict:
            if not golden:
                return {}
            return bioasq_scores(golden, {id: [a.text for a in x] for id, x in ranked.items()})

        return Task(
            "qa", "span", None, pairs, [len(w.tokens) for w, _ in pairs], collate, test, None,
            {"data": train.stem, "tests": [path.stem for path in tests], "stride": stride,
             "order": order, "counts": counts,
             "data_is": fingerprint(passages, list(tests.values()), golden)},
        )  # fmt: skip

    return make


def check_length(recipe: Recipe, least: int, what: str) -> None:
    if recipe.length < least:
        raise InputError(f"--length is {recipe.length}, expected at least {least}: {what}")
