"""Files of every form and defect, words that leave no piece, sentences longer than the model."""

import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import damaged, real_data
from minibio.run.errors import InputError
from minibio.tasks import ner, tags
from minibio.tasks.metrics import entity_scores
from minibio.tasks.ner import Mention, Sentence
from minibio.tasks.reading import cut
from minibio.text.tokenizer import Tokenizer

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
        PLAIN.replace("\t", " "),
        PLAIN.replace("\t", "  NN  B-NP ").replace("\n", " \n"),
        "###MEDLINE:95369245\n\n" + PLAIN,
    ],
    ids=["plain", "no-last-newline", "blanks-after", "blanks-between", "crlf", "bom", "docstart",
         "docstart-between", "three-columns", "space-after", "spaces", "conll-2003", "jnlpba"],
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
        (
            PLAIN.replace("gene\tO", "gene\tNN\tO"),
            r"line 3 is 'gene.tNN.tO', expected token TAB tag",
        ),
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


CONLL = (  # CoNLL-2003's form and order: word, part of speech, chunk, name
    "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\nGerman JJ B-NP B-MISC\n"
    "call NN I-NP O\n\nPeter NNP B-NP B-PER\nBlackburn NNP I-NP I-PER\n"
)
NAMED = [
    Sentence(["EU", "rejects", "German", "call"], ["B-ORG", "O", "B-MISC", "O"]),
    Sentence(["Peter", "Blackburn"], ["B-PER", "I-PER"]),
]


def test_the_guess_of_columns_is_printed(tsv, capsys):
    path = tsv(CONLL)
    assert ner.read_tsv(path) == NAMED
    said = "4 columns apart by spaces: word from column 1, tag from column 4"
    assert capsys.readouterr().out == f"{path}: {said}\n"
    assert ner.read_tsv(tsv(PLAIN)) == TWO
    assert capsys.readouterr().out == ""
    ner.read_tsv(tsv(PLAIN.replace("\t", "\tNN\t")))
    assert (
        "3 columns apart by tabs: word from column 1, tag from column 3" in capsys.readouterr().out
    )


@pytest.mark.parametrize("by", [" ", "\t"])
def test_columns_that_are_named(tsv, capsys, by):
    rows = [line.split(" ") for line in CONLL.split("\n")[2:]]
    turned = "\n".join(
        by.join([str(i), *row[::-1]]) if row[0] else "" for i, row in enumerate(rows)
    )
    path = tsv(turned)
    assert ner.read_tsv(path, columns=["_", "tag", "_", "_", "word"]) == NAMED
    assert "word from column 5, tag from column 2" in capsys.readouterr().out
    chunks = ner.read_tsv(path, columns=["_", "_", "tag", "_", "word"])
    assert chunks[0].tags == ["B-NP", "B-VP", "B-NP", "I-NP"]
    with pytest.raises(InputError, match=r"line 1 is .*, of 5 columns, expected 2: word,tag"):
        ner.read_tsv(path, columns=["word", "tag"])
    with pytest.raises(InputError, match="column 1 has only numbers|the first column has only num"):
        ner.read_tsv(path, columns=["word", "tag", "_", "_", "_"])
    swapped = tsv("O\tThe\nB\tgene\n")
    assert ner.read_tsv(swapped, columns=["tag", "word"]) == [Sentence(["The", "gene"], ["O", "B"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONLL.replace(" I-NP O", " O"), r"line 6 is 'call NN O', expected 4 columns "
         "apart by spaces, as line 3 has"),
        (CONLL.replace("call NN", "call  up NN"), r"line 6 is 'call  up NN I-NP O', expected 4"),
        (CONLL.replace("call NN I-NP O", "call"), r"line 6 is 'call', expected 4 columns"),
        ("The O DT\ngene B NN\n", r"line 1 has the tag 'DT', .*word from column 1, tag from "
         "column 3; --columns"),
        ("O The\nB gene\n", r"line 1 has the tag 'The'"),
        ("The DT Gene\nA DT O\n", r"line 1 has the tag 'Gene'"),
        ("1\tGout\tN\tB\n2\tin\tP\tO\n", r"first column has only numbers.*--columns names them"),
        ("# id = 1\n1 Gout B\n", r"line 1 has the tag|line 2 is"),
    ],
)  # fmt: skip
def test_no_column_is_taken_by_a_wrong_guess(tsv, content, message):
    path = tsv(content)
    with pytest.raises(InputError, match=message) as error:
        ner.read_tsv(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def random_bilou(rng):
    """Valid sentences: entities of two types and of one to four words."""
    rows = []
    for _ in range(60):
        row = []
        for _ in range(rng.randint(1, 6)):
            kind, n = rng.choice("DG"), rng.randint(0, 4)
            middle = [f"I-{kind}"] * (n - 2)
            row += [["O"], [f"U-{kind}"]][n] if n < 2 else [f"B-{kind}", *middle, f"L-{kind}"]
        rows.append(row)
    return rows


def as_file(rows):
    return "\n".join("".join(f"w{i}\t{tag}\n" for i, tag in enumerate(row)) for row in rows)


@pytest.mark.parametrize("by_suffix", [False, True])
def test_bilou_is_learnt_as_the_entities_that_seqeval_finds(tmp_path, capsys, by_suffix):
    from seqeval.scheme import BILOU, Entities

    rng = random.Random(0)
    rows = {name: random_bilou(rng) for name in ("train", "test")}
    for name, tagged in rows.items():
        if by_suffix:
            tagged = [["-".join(tag.split("-")[::-1]) for tag in row] for row in tagged]
        (tmp_path / f"{name}.tsv").write_text(as_file(tagged))
    for scheme in (None, *tags.SCHEMES):
        sets, found, broken, written = ner.read_sets(tmp_path, scheme)
        assert (found, broken, written) == ("IOBES", 0, "BILOU")
        for name, sentences in sets.items():
            want = [[(e.tag, e.start, e.end - 1) for e in row]
                    for row in Entities(rows[name], BILOU).entities]  # fmt: skip
            assert [[tuple(e) for e in tags.entities(s.tags)] for s in sentences] == want
            assert tags.detect(s.tags for s in sentences) == (scheme or "IOBES", 0)
        ner.NerTask(tmp_path, scheme)
        learnt = f"{tmp_path}: tags in BILOU, learnt as {scheme or 'IOBES'}\n"
        assert learnt in capsys.readouterr().out


def test_seqeval_scores_bilou_as_we_score_what_is_read(tmp_path):
    from seqeval.metrics import f1_score
    from seqeval.scheme import BILOU

    rng = random.Random(1)
    gold, found = random_bilou(rng), []
    for row in gold:  # another type, single words, nothing, or all right
        typed = [tag.replace("D", "G") for tag in row]
        single = [tag if tag == "O" else f"U{tag[1:]}" for tag in row]
        found.append(rng.choice([row, row, typed, single, ["O"] * len(row)]))
    read = []
    for name, tagged in (("a", gold), ("b", found)):
        (tmp_path / name).write_text(as_file(tagged))
        read.append([s.tags for s in ner.read_tsv(tmp_path / name)])
    want = f1_score(gold, found, mode="strict", scheme=BILOU)
    assert 0.2 < want < 0.99
    assert entity_scores(*read)["f1"] == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("labels", ["BMES", "BMEW"])
def test_bmes_by_hand(tmp_path, capsys, labels):
    """Down syndrome, early onset breast cancer, gout; seven words and three of them."""
    row = "O B M M E S B E O".replace("S", labels[-1]).split()
    for name, tagged in (("train", row), ("test", [row[5], "O"])):  # one letter in test
        (tmp_path / f"{name}.tsv").write_text(as_file([tagged]))
    sets, found, _, written = ner.read_sets(tmp_path)
    assert (found, written) == ("IOBES", "BMES" if labels == "BMES" else "BMEWO")
    assert sets["train"][0].tags == "O B I I E S B E O".split()
    assert tags.entities(sets["train"][0].tags) == [("", 1, 4), ("", 5, 5), ("", 6, 7)]
    assert sets["test"][0].tags == ["S", "O"]
    assert ner.read_sets(tmp_path, "IOB2")[0]["train"][0].tags == "O B I I I B B I O".split()
    ner.NerTask(tmp_path, "IOB2")
    assert f"tags in {written}, learnt as IOB2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a\tB\nb\tL\nc\tM\n", 2),  # letters of two schemes
        ("a\tB\nb\tI\nc\tM\n", 3),
        ("a\tB-D\nb\tL\n", 2),
        ("a\tB-D\nb\tD-I\n", 2),
        ("a\tO\nb\tX\n", 2),
        ("a\tO\nb\tDisease\n", 2),
    ],
)
def test_tags_of_no_known_scheme(tsv, content, line):
    with pytest.raises(InputError, match=f"train.tsv: line {line} has the tag '[^']+', expected O"):
        ner.read_tsv(tsv(content))


def test_a_typing_error_does_not_make_bilou(tmp_path, capsys):
    """One L in a file of IOB2 is one sentence that breaks it, and counted."""
    (tmp_path / "train.tsv").write_text("a\tB\nb\tI\n\n" * 5 + "a\tB\nb\tL\n")
    (tmp_path / "test.tsv").write_text("a\tB\n")
    ner.NerTask(tmp_path)
    assert f"{tmp_path}: tags in IOB2, 1 sentences otherwise\n" in capsys.readouterr().out


IOB1 = "In\tO\nBRCA1\tI\ngene\tI\nTP53\tB\n\nIt\tI\n"
IOBES = "In\tO\nBRCA1\tB\ngene\tE\nTP53\tS\n\nIt\tS\n"
IOB2 = IOB1.replace("BRCA1\tI", "BRCA1\tB").replace("It\tI", "It\tB")


@pytest.mark.parametrize(("scheme", "content"), [("IOB1", IOB1), ("IOB2", IOB2), ("IOBES", IOBES)])
def test_each_scheme_is_read(tsv, scheme, content):
    for text in (content, content.replace("\tB", "\tB-x").replace("\tI", "\tI-x")
                 .replace("\tE", "\tE-x").replace("\tS", "\tS-x")):  # fmt: skip
        sentences = ner.read_tsv(tsv(text))
        assert tags.detect(s.tags for s in sentences) == (scheme, 0)
        assert ner.read_tsv(tsv(text), scheme) == sentences
        gold = [s.tags for s in ner.read_tsv(tsv(text))]
        for other in tags.SCHEMES:
            rewritten = ner.in_scheme(sentences, other)
            assert tags.detect(s.tags for s in rewritten) == (other, 0)
            assert [s.words for s in rewritten] == [s.words for s in sentences]
            score = entity_scores(gold, [s.tags for s in rewritten])
            assert (score["f1"], score["support"]) == (1.0, 3)


@pytest.mark.parametrize(
    ("content", "scheme", "message"),
    [
        (IOB1, "IOB2", r"train\.tsv: line 2 has the tag 'I' where IOB2 has 'B'"),
        (IOB2, "IOB1", r"train\.tsv: line 2 has the tag 'B' where IOB1 has 'I'"),
        (IOBES.replace("E", "I"), "IOBES", r"train\.tsv: line 3 has the tag 'I' where .* 'E'"),
        ("\n\r\n" + IOB2 + "is\tO\r\n\nso\tI", "IOB2", r"line 11 has the tag 'I' .* has 'B'"),
        (IOB2, "BILOU", r"scheme is 'BILOU', expected one of IOB2, IOB1, IOBES"),
    ],
)
def test_a_scheme_that_is_given_must_be_kept(tsv, content, scheme, message):
    with pytest.raises(InputError, match=message) as error:
        ner.read_tsv(tsv(content), scheme)
    assert "\n" not in str(error.value)


def test_an_i_without_a_b_opens_an_entity(tsv):
    sentences = ner.read_tsv(tsv("The\tO\nBRCA1\tI\ngene\tI\n\nIt\tB\nis\tI\n"))
    assert sentences[0].tags == ["O", "I", "I"]  # as the file has them
    assert ner.in_scheme(sentences, "IOB2")[0].tags == ["O", "B", "I"]
    assert entity_scores([s.tags for s in sentences], [["O", "B", "I"], ["B", "I"]])["f1"] == 1.0


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "train.tsv"):
        with pytest.raises(InputError, match=str(path)):
            ner.read_tsv(path)


def test_whatever_befalls_a_file(tsv):
    """It is read, or refused with one line that names it; nothing else."""
    rng, refused = random.Random(0), 0
    for content in (IOB1, IOB2, IOBES, PLAIN.replace("\tB", "\tB-x"), "-DOCSTART-\tO\n\n" + PLAIN):
        for _ in range(120):
            path = tsv(damaged(content.encode(), rng))
            try:
                sentences = ner.read_tsv(path, rng.choice([None, "IOB2"]))
            except InputError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
                refused += 1
            else:
                assert all(s.words and len(s.words) == len(s.tags) for s in sentences)
    assert 100 < refused < 550


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
    """True of any windows."""
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


WORD = st.sampled_from(["The", "BRCA1", "\u200b", "", "a,b,c,d,e,f,g,h", "\x07", "é", "β-catenin"])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.lists(WORD, min_size=1, max_size=12), min_size=1, max_size=5),
       st.integers(3, 24), st.randoms(use_true_random=False))  # fmt: skip
def test_what_is_split_is_rejoined(tokenizer, texts, length, rng):
    sentences = [Sentence(words, rng.choices(["O", "B", "I"], k=len(words))) for words in texts]
    check(ner.make_windows(sentences, tokenizer, length), sentences, tokenizer, length)


def test_words_are_cut_in_chunks(tokenizer, monkeypatch):
    sentences = [Sentence(["The", "BRCA1", "gene", "The", "p53", "\u200b"], ["O"] * 6)] * 3
    want = ner.make_windows(sentences, tokenizer, 20)
    monkeypatch.setattr(ner, "CHUNK", 2)
    assert ner.make_windows(sentences, tokenizer, 20) == want


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


def test_a_tag_unseen_in_training_is_left_out_of_the_loss(tokenizer):
    windows = ner.make_windows([Sentence(["It", "is"], ["B", "S"])], tokenizer, 512)
    labels = ner.collate(windows, ("O", "B")).labels.tolist()
    assert labels == [1 if tag == "B" else -100 for tag in windows[0].tags]
    assert torch.nn.CrossEntropyLoss().ignore_index == -100


# reading out


class Parrot(torch.nn.Module):
    """Says of each token the class that its id names."""

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


# the file for conlleval


def conlleval(text):
    """conlleval.pl's chunk counting on its own file, line by line: precision, recall, F in %."""
    right = guessed = gold = 0
    in_right = False
    last = {"g": ("O", ""), "p": ("O", "")}

    def ends(a, b):
        return (a[0] in "ES" or (a[0] in "BI" and b[0] in "BSO")
                or (a[0] != "O" and a[1] != b[1]))  # fmt: skip

    def starts(a, b):
        return (b[0] in "BS" or (a[0] in "ESO" and b[0] in "EI")
                or (b[0] != "O" and a[1] != b[1]))  # fmt: skip

    for line in text.split("\n"):
        features = line.split()
        if not features or features[0] == "-X-":
            features = ["", "O", "O"]
        g, p = (tuple((tag.split("-", 1) + [""])[:2]) for tag in features[-2:])
        if in_right:
            ended = ends(last["g"], g), ends(last["p"], p)
            if all(ended) and last["g"][1] == last["p"][1]:
                in_right, right = False, right + 1
            elif ended[0] != ended[1] or g[1] != p[1]:
                in_right = False
        begun = starts(last["g"], g), starts(last["p"], p)
        if all(begun) and g[1] == p[1]:
            in_right = True
        gold, guessed = gold + begun[0], guessed + begun[1]
        last = {"g": g, "p": p}
    right += in_right
    precision = 100 * right / guessed if guessed else 0.0
    recall = 100 * right / gold if gold else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if right else 0.0


FORMS = {
    "untyped": ["O", "B", "I"],
    "typed": "O B-a I-a B-b I-b B-c-d I-c-d".split(),
    "iobes": "O B-a I-a E-a S-a B-b I-b E-b S-b".split(),
}


@pytest.mark.parametrize("form", FORMS)
def test_conlleval_reads_our_file_as_we_score(tmp_path, form):
    rng, names, path = random.Random(form), FORMS[form], tmp_path / "out" / "test.conll"
    words = ["The", "-X-", " ", "a b", "\u00a0", "\u2028", "x\x0cy", "#", '"']
    for _ in range(400):
        sentences, found = [], []
        for _ in range(rng.randint(1, 4)):
            gold = rng.choices(names, k=rng.randint(1, 9))
            sentences.append(Sentence(rng.choices(words, k=len(gold)), gold))
            found.append([tag if rng.random() < 0.6 else rng.choice(names) for tag in gold])
        ner.write_conll(path, sentences, found)
        text = path.read_text("utf-8")
        assert {len(line.split()) for line in text.split("\n")} == {0, 3}
        scores = entity_scores([s.tags for s in sentences], found)
        want = [100 * scores[name] for name in ("precision", "recall", "f1")]
        assert conlleval(text) == pytest.approx(want, abs=1e-9)


def test_the_bytes_of_that_file(tmp_path):
    ner.write_conll(tmp_path / "x", TWO, [["O", "B", "I"], ["O"]])
    want = "The O O\nBRCA1 B B\ngene O I\n\nIt O O\n\n"
    assert (tmp_path / "x").read_bytes() == want.encode()
    with pytest.raises(ValueError, match="zip"):
        ner.write_conll(tmp_path / "x", TWO, [["O", "B", "I"]])
    assert (tmp_path / "x").read_bytes() == want.encode()  # the old file is whole


# text without tags


def sentence_of(text, tokenizer):
    """A text as a sentence, and the characters of each word."""
    spans = cut(text, tokenizer).word_spans
    return ner.Sentence([text[a:b] for a, b in spans], ["O"] * len(spans)), spans


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("The BRCA1 gene.", [("BRCA1", "")]),
        ("\u200bThe  BR\u200bCA1\u200b gene, p53", [("BR\u200bCA1", ""), ("p53", "")]),
        ("The gene", []),
        ("  ", []),
        ("", []),
    ],
)
def test_names_in_a_text(tokenizer, text, want):
    sentence, spans = sentence_of(text, tokenizer)
    windows = ner.make_windows([sentence], tokenizer, 6)
    starts = {tokenizer.encode_words([word])[0][0] for word in ("BRCA1", "p53")}
    classes = torch.tensor([i in starts for i in range(tokenizer.V)]).long()
    found = ner.predict(Parrot(classes, 2), windows, ("O", "B"), 2, "cpu", torch.no_grad)
    (names,), _ = ner.rejoin(windows, found)
    got = ner.mentions(names, spans)
    assert [(text[m.start : m.end], m.kind) for m in got] == want


def test_names_that_touch_are_one():
    spans = [(0, 2), (2, 3), (3, 4), (5, 9), (10, 12), (12, 14), (14, 16)]  # IL-2 gene x y z
    names = ["B-dna", "B-dna", "B-dna", "I-dna", "B-a", "B-b", "O"]
    want = [Mention("dna", 0, 9), Mention("a", 10, 12), Mention("b", 12, 14)]
    assert ner.mentions(names, spans) == want
    assert ner.mentions(["B", "B"], [(0, 2), (3, 5)]) == [Mention("", 0, 2), Mention("", 3, 5)]
    assert ner.mentions(["S", "O", "S"], spans[:3]) == [Mention("", 0, 2), Mention("", 3, 4)]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.text(st.sampled_from("aB1- ,.\u200b\u0301é\n"), max_size=40), st.integers(3, 9),
       st.randoms(use_true_random=False))  # fmt: skip
def test_every_word_of_a_text_can_be_found(tokenizer, text, length, rng):
    sentence, spans = sentence_of(text, tokenizer)
    sentence = sentence._replace(tags=rng.choices(["O", "B", "I"], k=len(spans)))
    windows = ner.make_windows([sentence], tokenizer, length)
    (words,), _ = ner.rejoin(windows, [w.tags for w in windows])
    assert words == sentence.tags
    found = ner.mentions(words, spans)
    inside = [any(m.start <= a and b <= m.end for m in found) for a, b in spans]
    assert inside == [tag != "O" for tag in words]
    for m in found:
        assert not text[m.start].isspace() and not text[m.end - 1].isspace()


def test_line_ends_of_old(tmp_path):
    (tmp_path / "train.tsv").write_bytes(b"Gout\tB\rhad\tO\r\rColic\tB\r")
    with pytest.raises(InputError, match="line 1 has a carriage return in it; expected lines that"):
        ner.read_tsv(tmp_path / "train.tsv")


def test_dev_is_devel(tmp_path):
    for name, word in (("train", "a"), ("dev", "b"), ("test", "c")):
        (tmp_path / f"{name}.tsv").write_text(f"{word}\tB\n")
    sets = ner.read_sets(tmp_path)[0]
    assert {name: x[0].words for name, x in sets.items()} == {
        "train": ["a"], "devel": ["b"], "test": ["c"]
    }  # fmt: skip
    (tmp_path / "devel.tsv").write_text("d\tB\n")
    assert ner.read_sets(tmp_path)[0]["devel"][0].words == ["d"]


def test_a_first_column_of_numbers_is_no_text(tmp_path):
    (tmp_path / "x.tsv").write_text("1\tGout\tB\n2\tin\tO\n")
    with pytest.raises(InputError, match="x.tsv: the first column has only numbers"):
        ner.read_tsv(tmp_path / "x.tsv")
