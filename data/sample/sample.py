"""The built-in sample: `python -m data.sample --out DIR [--seed 0] [--documents N]`.

Biomedical-looking titles and abstracts of our own making (grammar.py), with the annotations
that come for free, in the forms of the real sets, so that every command runs on it unchanged:

    corpus.jsonl                       id, title, abstract: to pre-train on
    ner/{train,devel,test}.tsv         diseases, as NCBI-disease: token TAB B, I or O
    ner-chem/, ner-gene/               the same sentences with another kind of name
    ner_typed/{train,devel,test}.tsv   all kinds, B-disease ..., -DOCSTART- lines, as JNLPBA
    relation/gad/{train,test}.tsv      @GENE$, @DISEASE$ and a label, as BioBERT's GAD
    relation/chemprot/*.jsonl          << >>, [[ ]] and one of 13 labels, as SciBERT's ChemProt
    qa/{train,test,golden}.json        SQuAD and BioASQ forms; ids are <question>_<snippet>
    sample.json                        seed, version, counts; written last

The sets come from streams of their own: no document of the corpus is in any of them, yet they speak
of the same world, so most names of a test set are in the corpus and few in its training set.
"""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data.sample.grammar import SampleDocument, SampleMention, SampleSentence, document, documents
from data.sample.lexicon import Dice, world
from minibio.run.errors import InputError
from minibio.run.files import as_written, read_json, staged_dir, write_json
from minibio.run.options import Parser

VERSION = 2  # of the text: another version writes other bytes for the same seed
CORPUS, NER, GAD, CHEMPROT, QA = range(5)  # streams of documents
TOKEN = re.compile(r"\w+|[^\w\s]")  # words and single marks, as the real files are split
NER_SENTENCES = {"train": 600, "devel": 150, "test": 1200}
NER_FOLDERS = {"ner": "disease", "ner-chem": "chemical", "ner-gene": "gene"}
GAD_EXAMPLES = {"train": 600, "test": 200}
GAD_POSITIVE = 53  # per cent, as in the real set
CHEMPROT_EXAMPLES = {"train": 600, "dev": 150, "test": 300}
QA_QUESTIONS = {"train": 150, "test": 50}
URL = "http://sample.invalid/abstract/"  # in the place of the address of a PubMed record


def make_sample(
    out: str | Path,
    seed: int = 0,
    documents: int = 20000,
    ner_train: int = NER_SENTENCES["train"],
    progress: bool = False,
    force: bool = False,
) -> dict:
    """Write the sample to the directory `out`; returns its counts.

    The same arguments write the same bytes everywhere. A directory that already holds the sample
    they ask for is left as it is.

    Args:
        seed:      of the documents, 0 .. 2**64-1; the world they speak of is always the same.
        documents: in corpus.jsonl.
        ner_train: sentences of ner/train.tsv and of its siblings.
        force:     replace what `out` holds.
    Raises:
        InputError: `out` holds something else, or a number is out of range.
    """
    for name, value in (("documents", documents), ("ner_train", ner_train)):
        if value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed is {seed}, expected 0 to 2**64 - 1")
    out = Path(out)
    wanted = {"version": VERSION, "seed": seed, "documents": documents, "ner_train": ner_train}
    found = present(out)
    if found is not None and not force:
        if {name: found.get(name) for name in wanted} != wanted:
            raise InputError(
                f"{out} holds another sample ({', '.join(f'{k} {found.get(k)}' for k in wanted)}), "
                f"expected {', '.join(f'{k} {v}' for k, v in wanted.items())}; choose another "
                "directory or replace it with --force"
            )
        with as_written(out / "sample.json", "replace it with --force"):
            return dict(found["counts"])
    with staged_dir(out, overwrite=force) as staged:
        counts = {"documents": documents, "words": write_corpus(staged, seed, documents, progress)}
        counts |= write_ner(staged, seed, NER_SENTENCES | {"train": ner_train})
        counts |= write_gad(staged / "relation/gad", seed)
        counts |= write_chemprot(staged / "relation/chemprot", seed)
        counts |= write_qa(staged / "qa", seed)
        write_json(staged / "sample.json", wanted | {"counts": counts})
    return counts


def present(out: Path) -> dict | None:
    """The sample.json of an existing sample, or None where there is none."""
    return read_json(out / "sample.json") if (out / "sample.json").is_file() else None


def write_lines(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


def write_corpus(out: Path, seed: int, n: int, progress: bool) -> int:
    """corpus.jsonl; returns its number of words."""
    from tqdm import tqdm

    n_words = 0

    def records() -> Iterator[str]:
        nonlocal n_words
        stream = documents(seed, n, CORPUS)
        for doc in tqdm(
            stream, total=n, desc="sample", disable=not (progress and sys.stderr.isatty())
        ):
            record = {"id": doc.id, "title": doc.title.text, "abstract": doc.abstract}
            n_words += sum(text.count(" ") + 1 for text in (record["title"], record["abstract"]))
            yield json.dumps(record) + "\n"

    write_lines(out / "corpus.jsonl", records())
    return n_words


# --- named entities ------------------------------------------------------------------------------


def tag_tokens(sentence: SampleSentence, kind: str | None = None) -> list[tuple[str, str]]:
    """Tokens and tags: B, I, O for names of one kind; B-kind ... for all kinds if it is None."""
    tagged, mentions = [], [m for m in sentence.mentions if kind in (None, m.thing.kind)]
    for match in TOKEN.finditer(sentence.text):
        tag = "O"
        for mention in mentions:
            if mention.start <= match.start() < mention.end:
                tag = "B" if match.start() == mention.start else "I"
                tag += "" if kind else f"-{mention.thing.kind}"
        tagged.append((match[0], tag))
    return tagged


def ner_documents(seed: int, sizes: dict[str, int]) -> dict[str, list[list[SampleSentence]]]:
    """For each split a list of documents, each a list of its sentences with the title first.

    From every document come three sentences at most, so that a few sentences name many things.
    """
    splits, position = {}, 0
    for name, size in sizes.items():
        splits[name], left = [], size
        while left:
            doc = document(seed, NER, position)
            chosen = Dice(seed, NER << 40 | 1 << 39 | position).some(doc.sentences, 2)
            sentences = [doc.title] + [s for s in doc.sentences if s in chosen]
            splits[name].append(sentences[:left])
            left -= len(splits[name][-1])
            position += 1
    return splits


def write_ner(out: Path, seed: int, sizes: dict[str, int]) -> dict:
    """The four folders of tagged sentences; returns counts."""
    counts = {}
    for split, docs in ner_documents(seed, sizes).items():
        sentences = [sentence for doc in docs for sentence in doc]
        for folder, kind in NER_FOLDERS.items():
            tagged = [tag_tokens(sentence, kind) for sentence in sentences]
            write_lines(out / folder / f"{split}.tsv", map(sentence_lines, tagged))
            counts[f"{folder} {split} entities"] = sum(t == "B" for s in tagged for _, t in s)
        write_lines(out / "ner_typed" / f"{split}.tsv", map(typed_lines, docs))
        counts[f"ner {split} sentences"] = len(sentences)
    return counts


def sentence_lines(tagged: list[tuple[str, str]]) -> str:
    return "".join(f"{token}\t{tag}\n" for token, tag in tagged) + "\n"


def typed_lines(sentences: list[SampleSentence]) -> str:
    return "-DOCSTART-\tO\n\n" + "".join(sentence_lines(tag_tokens(s)) for s in sentences)


# --- relations -----------------------------------------------------------------------------------


def first_mention(sentence: SampleSentence, slots) -> SampleMention | None:
    return next((m for m in sentence.mentions if m.slot in slots), None)


def stated(
    seed: int, stream: int, kind: str, tags
) -> Iterator[tuple[SampleSentence, SampleDocument]]:
    """The sentences of a stream that state one of the `tags`, with their documents."""
    position = 0
    while True:
        doc = document(seed, stream, position, kind)
        for sentence in doc.sentences:
            if sentence.tag in tags:
                yield sentence, doc
        position += 1


def replaced(text: str, parts: list[tuple[SampleMention, str]]) -> str:
    """`text` with mentions replaced, from the last to the first."""
    for mention, name in sorted(parts, key=lambda part: -part[0].start):
        text = text[: mention.start] + name + text[mention.end :]
    return text


def write_gad(out: Path, seed: int) -> dict:
    """train.tsv without a header, test.tsv with one: gene and disease related or not."""
    sizes, total = GAD_EXAMPLES, sum(GAD_EXAMPLES.values())
    left = {"1": total * GAD_POSITIVE // 100}
    left["0"] = total - left["1"]
    examples = {}
    for sentence, _ in stated(seed, GAD, "genetics", ("gene", "no-gene")):
        label = str(int(sentence.tag == "gene"))
        gene = first_mention(sentence, ("gene", "stray"))
        disease = first_mention(sentence, ("disease",))
        text = replaced(sentence.text, [(gene, "@GENE$"), (disease, "@DISEASE$")])
        if left[label] and text not in examples:
            left[label] -= 1
            examples[text] = label
        if not any(left.values()):
            break
    rows = Dice(seed, GAD << 40 | 1 << 39).some(examples.items(), total)
    train, test = rows[: sizes["train"]], rows[sizes["train"] :]
    write_lines(out / "train.tsv", (f"{text}\t{label}\n" for text, label in train))
    body = [f"{i}\t{text}\t{label}\n" for i, (text, label) in enumerate(test)]
    write_lines(out / "test.tsv", ["index\tsentence\tlabel\n", *body])
    return {"gad train": len(train), "gad test": len(test)}


def write_chemprot(out: Path, seed: int) -> dict:
    """JSON lines: << the first >> and [[ the second ]] of compound and gene, and their relation."""
    stream, counts, seen = stated(seed, CHEMPROT, "pharmacology", ("target",)), {}, set()
    for split, size in CHEMPROT_EXAMPLES.items():
        records = []
        while len(records) < size:
            sentence, doc = next(stream)
            pair = (first_mention(sentence, ("compound",)), first_mention(sentence, ("target",)))
            first, second = sorted(pair, key=lambda m: m.start)
            text = sentence.text
            marked = [
                (first, f"<< {text[first.start : first.end]} >>"),
                (second, f"[[ {text[second.start : second.end]} ]]"),
            ]
            text = replaced(text, marked)
            if text not in seen:
                seen.add(text)
                label = doc.scene["compound"].label
                records.append(json.dumps({"text": text, "label": label, "metadata": []}) + "\n")
        write_lines(out / f"{split}.jsonl", records)
        counts[f"chemprot {split}"] = size
    return counts


# --- questions -----------------------------------------------------------------------------------

# what a sentence states -> kinds of article that may hold it, slot of the answer, question
QUESTIONS = {
    "gene": (("genetics", "model"), "gene", "Which gene is associated with {}?"),
    "treats": (("trial", "case"), "drug", "Which drug is used for the treatment of {}?"),
    "causes": (("infection",), "species", "Which organism causes {}?"),
    "marks": (("diagnosis", "epidemiology"), "chem", "Which biomarker is elevated in {}?"),
    "target": (("pharmacology",), "target", "What is the molecular target of {}?"),
}


def ask(seed: int, number: int) -> tuple[dict, list[dict]]:
    """Question `number` as a BioASQ record, and its snippets in SQuAD form, ids from 0."""
    dice = Dice(seed, QA << 40 | 1 << 39 | number)
    tag = list(QUESTIONS)[number % len(QUESTIONS)]
    kinds, slot, wording = QUESTIONS[tag]
    things = world().drugs if tag == "target" else world().diseases
    if tag == "causes":
        things = [disease for disease in things if disease.cause]
    turn = number // len(QUESTIONS)  # each in a stretch of its own, so that none is asked twice
    stretch = len(things) * len(QUESTIONS) // sum(QA_QUESTIONS.values())
    subject = things[turn * stretch + dice.below(stretch)]
    who = {"compound": subject} if tag == "target" else {"disease": subject}
    question = wording.format(subject.name)
    key = f"{dice.below(2**32):08x}{number:016x}"
    answer, snippets, passages = None, [], []
    wanted, position = dice.between(1, 5), number << 10
    while len(passages) < wanted:
        position += 1
        doc = document(seed, QA, position, dice.pick(kinds), tag=tag, **who)
        sentence = next(s for s in doc.sentences if s.tag == tag)
        mention = first_mention(sentence, (slot,))
        if answer is None:
            answer = mention.thing
        if mention.thing is not answer:
            continue
        begin = doc.abstract.index(sentence.text)
        surface, start = sentence.text[mention.start : mention.end], mention.start
        context = sentence.text
        if dice.chance(40):  # the whole abstract, as in the test files of BioASQ 6b
            context = f"{doc.title.text} {doc.abstract}"
            start += len(doc.title.text) + 1 + begin
        url = f"{URL}{number * 10 + len(passages)}"
        snippets.append(
            {
                "offsetInBeginSection": begin,
                "offsetInEndSection": begin + len(sentence.text),
                "text": sentence.text,
                "beginSection": "abstract",
                "document": url,
                "endSection": "abstract",
            }
        )
        passages.append(
            {
                "id": f"{key}_{len(passages):03d}",
                "question": question,
                "context": context,
                "answers": [{"text": surface, "answer_start": start}],
            }
        )
    names = [name for name in (answer.short, answer.name) if name]
    return factoid(key, question, names, snippets), passages


def factoid(key: str, question: str, names: list[str], snippets: list[dict]) -> dict:
    """A question of BioASQ's form with one answer, that has several `names`."""
    return {
        "body": question,
        "documents": [snippet["document"] for snippet in snippets],
        "triples": [],
        "ideal_answer": [snippets[0]["text"]],
        "exact_answer": [names],
        "concepts": [],
        "type": "factoid",
        "id": key,
        "snippets": snippets,
    }


def paragraph(passage: dict, with_answer: bool) -> dict:
    """A passage in SQuAD form; with answers its id counts snippets from 1, as BioBERT's do."""
    question, snippet = passage["id"].rsplit("_", 1)
    qa = {"question": passage["question"], "id": passage["id"]}
    if with_answer:
        key = f"{question}_{int(snippet) + 1:03d}"
        qa = {"id": key, "question": passage["question"], "answers": passage["answers"]}
    return {"context": passage["context"], "qas": [qa]}


def write_qa(out: Path, seed: int) -> dict:
    """train.json with answers, test.json without, golden.json with all names of each answer."""
    out.mkdir(parents=True, exist_ok=True)
    counts, number = Counter(), 0
    for split, n in QA_QUESTIONS.items():
        asked = [ask(seed, number + i) for i in range(n)]
        number += n
        paragraphs = [paragraph(p, split == "train") for _, passages in asked for p in passages]
        data = [{"title": "sample", "paragraphs": paragraphs}]
        write_json(out / f"{split}.json", {"version": "sample", "data": data})
        counts[f"qa {split} questions"] = n
        counts[f"qa {split} snippets"] = len(paragraphs)
    write_json(out / "golden.json", {"questions": [record for record, _ in asked]})
    return dict(counts)


def parser() -> Parser:
    p = Parser("data.sample", description=__doc__)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    p.add_argument("--seed", type=int, default=0, help="of the documents")
    p.add_argument("--documents", type=int, default=20000, metavar="N", help="in corpus.jsonl")
    p.add_argument(
        "--ner-train",
        type=int,
        default=NER_SENTENCES["train"],
        metavar="N",
        help="sentences to fine-tune on",
    )
    p.add_argument("--force", action="store_true", help="replace what --out holds")
    return p


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    began, was_there = time.perf_counter(), present(args.out) is not None and not args.force
    counts = make_sample(
        args.out, args.seed, args.documents, args.ner_train, progress=True, force=args.force
    )
    if was_there:
        print(f"sample: {args.out} already holds it: seed {args.seed}, version {VERSION}")
        return
    for name, value in counts.items():
        print(f"{name:<30} {value:>12,}")
    print(f"{'seconds':<30} {time.perf_counter() - began:>12.1f}")
