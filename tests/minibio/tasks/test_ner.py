"""Files of every form and defect, words that leave no piece, sentences longer than the model."""

import random
from types import SimpleNamespace

import pytest
import torch

from helpers import real_data
from minibio.errors import InputError
from minibio.metrics import entity_scores
from minibio.tasks import ner
from minibio.tasks.ner import Sentence
from minibio.tokenizer import Tokenizer

PLAIN = "The\tO\nBRCA1\tB\ngene\tO\n\nIt\tO\n"
TWO = [Sentence(["The", "BRCA1", "gene"], ["O", "B", "O"]), Sentence(["It"], ["O"])]


@pytest.fixture
def tsv(tmp_path):
    def write(content):
        path = tmp_path / "train.tsv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["The BRCA1 gene and p53 mutants, breast cancer; it is a tumour suppressor."] * 3
    return Tokenizer.train(texts, 120)


# reading


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.rstrip("\n"),
        PLAIN + "\n\n\n",
        "\n\n" + PLAIN.replace("\n\n", "\n\n \n\t\n"),
        PLAIN.replace("\n", "\r\n"),
        "\ufeff" + PLAIN,
        "-DOCSTART-\tO\n\n" + PLAIN,
        PLAIN.replace("\n\n", "\n-DOCSTART- -X- O O\n"),
        PLAIN.replace("\t", "\tNN\t"),
        PLAIN.replace("\tB", "\tB "),
    ],
    ids=["plain", "no-last-newline", "blanks-after", "blanks-between", "crlf", "bom", "docstart",
         "docstart-between", "three-columns", "space-after"],
)  # fmt: skip
def test_forms_of_one_file(tsv, content):
    assert ner.read_tsv(tsv(content)) == TWO


def test_words_keep_every_character(tsv):
    words = ["\u200b", "\u00a0", "\x85", "\u2028", "\x0c", "a b", "-", "O", '"']
    got = ner.read_tsv(tsv("".join(f"{word}\tO\n" for word in words)))
    assert got == [Sentence(words, ["O"] * len(words))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PLAIN.replace("gene\tO", "gene"), r"train\.tsv: line 3 is 'gene', expected token TAB tag"),
        (PLAIN.replace("gene\tO", "\tO"), r"train\.tsv: line 3 .* expected token TAB tag"),
        (PLAIN.replace("\t", " "), r"train\.tsv: line 1 is 'The O', expected token TAB tag"),
        (PLAIN.replace("gene\tO", "gene\t"), r"train\.tsv: line 3 has the tag ''"),
        (
            PLAIN.replace("gene\tO", "gene\tX-protein"),
            r"train\.tsv: line 3 has the tag 'X-protein'",
        ),
        (PLAIN.replace("gene\tO", "gene\tB-"), r"train\.tsv: line 3 has the tag 'B-'"),
        (PLAIN.replace("gene\tO", "gene\tI-protein"), r"train\.tsv: line 3 .* like 'B' above"),
        (PLAIN.replace("It\tO", "It\tB-x\nis\tI"), r"train\.tsv: line 5 .* like 'B' above"),
        (PLAIN.encode() + b"caf\xe9\tO\n", r"train\.tsv: line 6, byte 4 is not UTF-8"),
        (PLAIN.encode("utf-16"), r"train\.tsv: line 1, byte 1 is not UTF-8"),
        (b"\x00\x01\x02\n", r"train\.tsv: line 1 .* expected token TAB tag"),
        ("", r"train\.tsv holds no sentence"),
        ("-DOCSTART-\tO\n\n", r"train\.tsv holds no sentence"),
    ],
)
def test_defects_are_named_with_their_line(tsv, content, message):
    with pytest.raises(InputError, match=message) as error:
        ner.read_tsv(tsv(content))
    assert "\n" not in str(error.value)


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "train.tsv"):
        with pytest.raises(InputError, match=str(path)):
            ner.read_tsv(path)


# as counted in the README of the real sets: sentences, entities
REAL = {
    "ner/NCBI-disease": ((5424, 5134), (923, 787), (940, 960)),
    "ner/BC5CDR-disease": ((4560, 4182), (4581, 4246), (4797, 4424)),
    "ner/BC5CDR-chem": ((4560, 5203), (4581, 5347), (4797, 5385)),
    "ner/BC2GM": ((12574, 15197), (2519, 3061), (5038, 6325)),
    "ner/JNLPBA": ((14690, 32178), (3856, 8575), (3856, 6241)),
    "ner_typed/JNLPBA": ((16807, 46750), (1739, 4551), (3856, 8662)),
}


@pytest.mark.parametrize("name", REAL)
def test_counts_of_the_real_sets(name):
    directory = real_data(name)
    for split, want in zip(("train", "devel", "test"), REAL[name], strict=True):
        sentences = ner.read_tsv(directory / f"{split}.tsv")
        n_entities = sum(tag.startswith("B") for s in sentences for tag in s.tags)
        assert (len(sentences), n_entities) == want, split
    tags = [s.tags for s in sentences]  # of the test set
    scores = entity_scores(tags, tags)
    assert (scores["f1"], scores["support"]) == (1.0, n_entities)  # all are IOB2
    assert len(scores["per_type"]) == (5 if "typed" in name else 1)


def test_labels_stand_in_one_order():
    tags = ["I-b", "B-b", "O", "B-a", "I-a"]
    want = ("O", "B-a", "B-b", "I-a", "I-b")
    for order in (tags, tags[::-1]):
        assert ner.label_names([Sentence(["x"] * 5, order)]) == want
    assert ner.label_names([Sentence(["x"], ["B"])]) == ("O", "B")


# words to pieces and back


def check(windows, sentences, tokenizer, length):
    """What holds of any windows."""
    for window in windows:
        assert len(window.tokens) == len(window.words) + 2 == len(window.tags) + 2 <= length
        assert window.tokens[0] == tokenizer.cls_id and window.tokens[-1] == tokenizer.sep_id
        assert window.words
    places = [(w.sentence, word) for w in windows for word in sorted(set(w.words))]
    assert places == [(i, j) for i, s in enumerate(sentences) for j in range(len(s.words))]
    words, pieces = ner.rejoin(windows, [w.tags for w in windows])
    assert words == [s.tags for s in sentences]
    assert sum(map(len, pieces)) == sum(len(w.words) for w in windows)


def test_pieces_of_a_sentence(tokenizer):
    sentence = Sentence(["The", "BRCA1", "gene"], ["O", "B", "O"])
    (window,) = ner.make_windows([sentence], tokenizer, 512)
    pieces = tokenizer.encode_words(["BRCA1"])[0]
    assert window.tokens == tokenizer.encode("The BRCA1 gene")
    assert window.words == [0, *[1] * len(pieces), 2]
    assert window.tags == ["O", *["B"] * len(pieces), "O"]


@pytest.mark.parametrize("word", ["\u200b", "\x07", "\u00ad", " ", "\u00a0", "\ufeff", "\u0301"])
def test_words_that_leave_no_piece_shift_nothing(tokenizer, word):
    sentence = Sentence(["The", word, "BRCA1", word], ["O", "O", "B", "I"])
    windows = ner.make_windows([sentence], tokenizer, 512)
    check(windows, [sentence], tokenizer, 512)
    assert [windows[0].tokens[1 + windows[0].words.index(w)] for w in (1, 3)] == [
        tokenizer.unk_id
    ] * 2


@pytest.mark.parametrize("length", [3, 4, 5, 8, 20, 512])
def test_long_sentences_lose_no_word(tokenizer, length):
    rng = random.Random(length)
    words = ["The", "BRCA1", "gene", "\u200b", "p53", "suppressor", "a.b.c.d.e.f.g.h.i.j.k.l" * 2]
    sentences = []
    for _ in range(30):
        n = rng.randint(1, 40)
        sentences.append(Sentence(rng.choices(words, k=n), rng.choices(["O", "B", "I"], k=n)))
    windows = ner.make_windows(sentences, tokenizer, length)
    check(windows, sentences, tokenizer, length)
    if length == 512:
        assert len(windows) == len(sentences)
    else:
        assert len(windows) > len(sentences)


def test_windows_are_filled_before_the_next_begins(tokenizer):
    (n,) = map(len, tokenizer.encode_words(["gene"]))
    windows = ner.make_windows([Sentence(["gene"] * 7, ["O"] * 7)], tokenizer, 3 * n + 2)
    assert [len(w.words) for w in windows] == [3 * n, 3 * n, n]


def test_a_word_longer_than_the_model_is_read_from_its_start(tokenizer):
    long = ",".join("abcdefgh" * 100)
    sentences = [Sentence(["The", long, "gene"], ["O", "B", "O"])]
    windows = ner.make_windows(sentences, tokenizer, 16)
    check(windows, sentences, tokenizer, 16)
    assert windows[1].tokens[1:-1] == tokenizer.encode_words([long])[0][:14]


def test_the_row_and_its_targets(tokenizer):
    labels = ("O", "B", "I")
    windows = ner.make_windows([*TWO, Sentence(["BRCA1"], ["I"])], tokenizer, 512)
    batch = ner.collate(windows, labels)
    assert batch.lengths == tuple(len(w.tokens) for w in windows)
    assert batch.M == batch.N - 2 * len(windows)
    special = torch.tensor([tokenizer.cls_id, tokenizer.sep_id])
    is_piece = ~torch.isin(batch.tokens, special)
    assert batch.predict.tolist() == is_piece.nonzero().flatten().tolist()
    assert [labels[k] for k in batch.labels] == [tag for w in windows for tag in w.tags]
    assert ner.collate(windows).labels is None


# reading out


class Parrot(torch.nn.Module):
    """Says of each token the class its id stands for."""

    def __init__(self, classes, K):
        super().__init__()
        self.classes, self.K = classes, K

    def forward(self, batch):
        assert not self.training
        logits = torch.zeros(batch.N, self.K)
        logits[torch.arange(batch.N), self.classes[batch.tokens]] = 1.0
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("B", [1, 2, 100])
def test_predictions_come_back_in_order(tokenizer, B):
    labels = ("O", "B", "I")
    rng = random.Random(0)
    vocabulary = ["The", "BRCA1", "gene", "\u200b", "suppressor", "p53"]
    sentences = [Sentence(rng.choices(vocabulary, k=n), ["O"] * n) for n in (9, 1, 30, 4, 2)]
    classes = torch.arange(tokenizer.V) % 3
    windows = ner.make_windows(sentences, tokenizer, 12)
    found = ner.predict(Parrot(classes, 3), windows, labels, B, "cpu", torch.no_grad)
    words, pieces = ner.rejoin(windows, found)
    ids = {w: tokenizer.encode_words([w])[0] or [tokenizer.unk_id] for w in vocabulary}
    assert words == [[labels[ids[w][0] % 3] for w in s.words] for s in sentences]
    assert pieces == [[labels[i % 3] for w in s.words for i in ids[w]] for s in sentences]
