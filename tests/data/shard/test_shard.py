"""`python -m data.shard`: what is read, what is left out, and that bad input leaves nothing."""

import gzip
import json
import lzma
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pubmed.markup import without_brackets
from data.shard import records
from data.shard.pieces import Maker
from data.shard.shard import is_held_out, main, shard
from helpers import ROOT, processes, real_data
from minibio.run.errors import InputError
from minibio.text.corpus import Corpus
from minibio.text.shards import Shards, verify
from minibio.text.tokenizer import SPECIAL, Tokenizer

RECORDS = [
    {"id": "a:1", "title": "Aspirin in mice.", "abstract": "It helps. It is cheap."},
    {"id": "a:2", "title": "[Zinc in rats].", "abstract": ""},
    {"id": "a:3", "title": "", "abstract": "An abstract alone."},
    {"id": "a:4", "title": "Scored later.", "abstract": "Out.", "in_eval_corpus": True},
    {"id": "a:5", "title": "Scored too.", "abstract": "Out.", "eval_test_overlap": True},
    {"id": "a:6", "title": " ", "abstract": None},
    {"pmid": 7, "title": "Not flagged.", "in_eval_corpus": False, "eval_test_overlap": None},
]


@pytest.fixture(scope="module")
def tokenizer():
    words = "aspirin in mice it helps is cheap zinc rats an abstract alone not flagged".split()
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.:"
    return Tokenizer.train([" ".join([*words, *letters])] * 3, 130, cased=False)


@pytest.fixture(scope="module")
def tokenizer_dir(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


def jsonl(path, records=RECORDS, opener=open):
    with opener(path, "wt", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
    return path


def texts(path, split="train"):
    """The documents of a split, decoded."""
    tokenizer, found = Tokenizer.from_dir(path), Shards(path, split)
    return [tokenizer.decode(found[i]) for i in range(len(found))]


def run(inputs, tokenizer, out, **options):
    return shard(inputs, tokenizer, out, **{"held_out": 0, "progress": False, **options})


EXPECTED = [
    "aspirin in mice. it helps. it is cheap.", "zinc in rats.", "an abstract alone.",
    "not flagged.",
]  # fmt: skip


@pytest.mark.parametrize(
    "end, opener", [(".jsonl", open), (".jsonl.gz", gzip.open), (".jsonl.xz", lzma.open)]
)
def test_records_become_title_and_abstract(tmp_path, tokenizer_dir, end, opener):
    counts = run([jsonl(tmp_path / f"in{end}", opener=opener)], tokenizer_dir, tmp_path / "out")
    assert texts(tmp_path / "out") == EXPECTED
    tokens = Shards(tmp_path / "out").lengths
    assert counts | {"seconds": 0} == {
        "documents read": 7,
        "dropped: in_eval_corpus": 1,
        "dropped: eval_test_overlap": 1,
        "dropped: empty": 1,
        "dropped: older version": 0,
        "dropped: exact duplicate": 0,
        "dropped: holds a test sentence": 0,
        "documents to train on": 4,
        "documents held out": 0,
        "documents cut short": 0,
        "tokens cut off, about": 0,
        "examples": 4,
        "tokens": tokens.sum(),
        "mean length": round(tokens.mean(), 1),
        "longest": tokens.max(),
        "[UNK] share": 0,
        "bytes on disk": (tmp_path / "out" / "train-00000.bin").stat().st_size,
        "seconds": 0,
    }


def test_keep_eval_keeps_flagged_records(tmp_path, tokenizer):
    counts = run([jsonl(tmp_path / "in.jsonl")], tokenizer, tmp_path / "out", keep_eval=True)
    assert counts["documents to train on"] == 6 and counts["dropped: in_eval_corpus"] == 0
    assert "scored later. out." in texts(tmp_path / "out")


def test_text_files_are_a_document_a_line(tmp_path, tokenizer):
    (tmp_path / "in.txt").write_bytes(
        "\ufeffzinc in mice\r\n\n  rats\u2028alone \n\u200b\n".encode()
    )
    counts = run([tmp_path / "in.txt"], tokenizer, tmp_path / "out")
    assert texts(tmp_path / "out") == ["zinc in mice", "rats alone"]
    assert (
        counts["documents read"] == 3 and counts["dropped: empty"] == 1
    )  # a lone zero-width space


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, tokenizer):
    (tmp_path / "in.jsonl").write_bytes('\ufeff{"title": "mice"}\n'.encode())
    run([tmp_path / "in.jsonl"], tokenizer, tmp_path / "out")
    assert texts(tmp_path / "out") == ["mice"]


def test_inputs_are_read_in_order(tmp_path, tokenizer):
    (tmp_path / "b.txt").write_text("rats")
    (tmp_path / "a.txt").write_text("mice")
    run([tmp_path / "b.txt", tmp_path / "a.txt"], tokenizer, tmp_path / "out")
    assert texts(tmp_path / "out") == ["rats", "mice"]


def test_long_documents_are_cut_and_end_with_sep(tmp_path, tokenizer):
    rows = [" ".join(["mice"] * n) for n in (3, 4, 5, 40)]
    (tmp_path / "in.txt").write_text("\n".join(rows))
    counts = run([tmp_path / "in.txt"], tokenizer, tmp_path / "out", length=6)
    found = Shards(tmp_path / "out")
    assert found.lengths.tolist() == [5, 6, 6, 6] and counts["documents cut short"] == 2
    for i in range(4):
        assert found[i].tolist() == tokenizer.encode(rows[i], 6)
    assert found.meta["length"] == 6


def test_unknown_tokens_are_counted(tmp_path, tokenizer):
    (tmp_path / "in.txt").write_text("mice 中 rats 中\n")
    counts = run([tmp_path / "in.txt"], tokenizer, tmp_path / "out")
    assert counts["[UNK] share"] == 2 / 6


def test_held_out_follows_from_the_id_alone(tmp_path, tokenizer):
    records = [{"id": i, "title": f"mice {i}"} for i in range(2000)]
    a = run([jsonl(tmp_path / "a.jsonl", records)], tokenizer, tmp_path / "a", held_out=0.1)
    assert 133 <= a["documents held out"] <= 267  # 200, five standard deviations
    changed = [{**r, "title": r["title"] + " rats"} for r in reversed(records)]
    run([jsonl(tmp_path / "b.jsonl", changed)], tokenizer, tmp_path / "b", held_out=0.1)
    kept, again = (set(texts(tmp_path / name, "held-out")) for name in "ab")
    assert {text + " rats" for text in kept} == again
    assert not kept & set(texts(tmp_path / "a"))
    # a larger share keeps the same documents back, and more
    assert all(is_held_out(str(i), 0.2) for i in range(2000) if is_held_out(str(i), 0.1))


def test_held_out_is_the_same_tomorrow():
    assert [i for i in range(300) if is_held_out(f"pmid:{i}", 0.01)] == [8, 189, 290]


def test_equal_texts_without_an_id_stand_on_one_side(tmp_path, tokenizer):
    (tmp_path / "in.txt").write_text("".join(f"mice {i % 40}\n" for i in range(200)))
    run([tmp_path / "in.txt"], tokenizer, tmp_path / "out", held_out=0.3)
    train, held_out = (set(texts(tmp_path / "out", split)) for split in ("train", "held-out"))
    assert held_out and not train & held_out


def test_output_is_a_corpus_with_its_tokenizer(tmp_path, tokenizer):
    run([jsonl(tmp_path / "in.jsonl")], tokenizer, tmp_path / "out", length=64)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["counts.json", "meta.json", "tokenizer.json", "tokenizer_config.json",
                     "train-00000.bin", "vocab.txt"]  # fmt: skip
    corpus = Corpus(tmp_path / "out", seed=0, length=64)
    assert corpus.tokenizer.fingerprint == tokenizer.fingerprint and corpus.n_documents == 4


def test_a_tokenizer_is_learnt_from_what_is_trained_on(tmp_path):
    records = [{"id": i, "title": f"Word{'x' * (i % 7)} {i}"} for i in range(300)]
    records += [{"id": f"e{i}", "title": "Ωmega", "in_eval_corpus": True} for i in range(9)]
    held_out = [r for r in records[:300] if is_held_out(str(r["id"]), 0.2)]
    for r in held_out:
        r["title"] = "Ψ"
    path = jsonl(tmp_path / "in.jsonl", records)
    counts = run([path], None, tmp_path / "out", train_tokenizer=80, held_out=0.2)
    pieces = Tokenizer.from_dir(tmp_path / "out").vocab
    assert len(pieces) == 80 and "Word" in pieces and not {"Ω", "Ψ"} & set(pieces)
    assert counts["documents held out"] == len(held_out) > 0


def squeezed(text):
    """What of a text the tokens keep: all but white space, as the normaliser leaves it."""
    return "".join(text.split())


def test_the_real_abstracts(tmp_path):
    """The first 300 real records with BERT's cased vocabulary: lossless but for the cut, and
    without the cut lossless."""
    vocab = real_data("vocab/bert-base-cased-vocab.txt")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_bytes(vocab.read_bytes())
    with lzma.open(real_data("pubmed/abstracts.jsonl.xz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(next(file)) for _ in range(300)]
    path = jsonl(tmp_path / "in.jsonl", rows)
    counts = run([path], tmp_path / "tokenizer", tmp_path / "out", keep_eval=True)
    assert counts["documents to train on"] == 300 and counts["longest"] == 256
    assert counts["[UNK] share"] < 0.001
    found, tokenizer = Shards(tmp_path / "out"), Tokenizer.from_dir(tmp_path / "tokenizer")
    assert found.meta["V"] == 28996 and found.meta["cased"] is True
    texts = [f"{without_brackets(r['title'].strip())} {r['abstract'].strip()}" for r in rows]
    assert [ids.tolist() for ids in found] == [tokenizer.encode(text, 256) for text in texts]
    lost = sum(max(0, len(tokenizer.encode(text)) - 256) for text in texts)
    assert 0.98 * lost < counts["tokens cut off, about"] < 1.02 * lost
    run([path], tmp_path / "tokenizer", tmp_path / "long", keep_eval=True, split_long=True)
    windows = iter(Shards(tmp_path / "long"))
    n_split = 0
    for text in texts:
        ids, expected = [], tokenizer.encode(text)[1:-1]
        while len(ids) < len(expected):
            window = next(windows).tolist()
            assert (window[0], window[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
            ids += window[1:-1]
        n_split += len(expected) > 254
        plain = "".join(tokenizer.pieces[i].removeprefix("##") for i in ids)
        if tokenizer.unk_id not in ids:
            assert plain == squeezed(tokenizer.backend.normalizer.normalize_str(text))
    assert next(windows, None) is None and n_split > 100


# bad input: one line, and nothing left behind

BAD_LINES = {
    "junk": (b"\x00\x01\x02\xff\xfe\n", "line 2: byte .* is not UTF-8"),
    "zero byte": (b'{"title": "a\x00"}\n', "line 2 holds a zero byte"),
    "bad json": (b'{"title": "mice"\n', "line 2: .*expected a JSON object a line"),
    "a list": (b'["mice"]\n', "line 2 is a list, expected a JSON object"),
    "no field": (b'{"id": 3, "body": "x"}\n', "line 2 has neither title nor abstract"),
    "a number": (b'{"title": 3}\n', "line 2: title is a int, expected text"),
    "a list of text": (b'{"abstract": ["x"]}\n', "line 2: abstract is a list, expected text"),
}  # fmt: skip


def assert_refused(message, tmp_path, *arguments, **options):
    """One line that says where, and no trace of the output but, hidden, pieces that are whole."""
    before = {path for path in tmp_path.iterdir() if path.name != ".out.pieces"}
    with pytest.raises(InputError, match=message) as error:
        run(*arguments, **options)
    assert "\n" not in str(error.value)
    left = set(tmp_path.iterdir()) - before
    if left:
        assert [path.name for path in left] == [".out.pieces"], "something was left behind"
        assert list(left.pop().glob("*/*.npz")) and "the next run resumes from" in str(error.value)


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("end, opener", [(".jsonl", open), (".jsonl.gz", gzip.open)])
def test_a_bad_line_is_named(tmp_path, tokenizer, name, end, opener):
    line, message = BAD_LINES[name]
    path = tmp_path / f"in{end}"
    with opener(path, "wb") as file:
        file.write(b'{"title": "mice"}\n' + line + b'{"title": "rats"}\n')
    assert_refused(f"in{end}: {message}", tmp_path, [path], tokenizer, tmp_path / "out")


def test_binary_junk_as_text_is_refused(tmp_path, tokenizer):
    path = tmp_path / "in.txt"
    path.write_bytes(b"mice\nrats\n\x89PNG\r\n\x1a\n\x00")
    assert_refused("in.txt: line 3: byte 0 is not UTF-8", tmp_path, [path], tokenizer,
                   tmp_path / "out")  # fmt: skip


@pytest.mark.parametrize("end, opener", [(".jsonl.gz", gzip.open), (".jsonl.xz", lzma.open)])
@pytest.mark.parametrize("damage", ["cut short", "overwritten"])
def test_a_damaged_archive_is_refused(tmp_path, tokenizer, end, opener, damage):
    path = jsonl(tmp_path / f"in{end}", RECORDS * 50, opener)
    raw = bytearray(path.read_bytes())
    if damage == "cut short":
        raw = raw[: len(raw) // 2]
    else:
        raw[len(raw) // 2 : len(raw) // 2 + 20] = bytes(20)
    path.write_bytes(raw)
    assert_refused("after line .* the archive is damaged", tmp_path, [path], tokenizer,
                   tmp_path / "out")  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=120)
@given(data=st.data())
@pytest.mark.parametrize("end, opener", [(".jsonl", open), (".jsonl.gz", gzip.open)])
def test_fuzzed_inputs_give_whole_shards_or_none(tmp_path_factory, tokenizer, end, opener, data):
    """Cut, overwritten, or with something put in, in one block of several."""
    place = tmp_path_factory.mktemp("fuzz")
    path = jsonl(place / f"in{end}", RECORDS * 9, opener)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 2))):
        i = data.draw(st.integers(0, len(raw)))
        j = i + data.draw(st.integers(0, 30))
        raw[i:j] = data.draw(st.binary(max_size=9) | st.sampled_from([b"\n", b'"', b"\\u0000"]))
    path.write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK", 1 << 10)
        try:
            run([path], tokenizer, place / "out", duplicates="exact")
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            assert {file.name for file in place.iterdir()} <= {path.name, ".out.pieces"}
        else:
            assert list(verify(place / "out")) == [] and not (place / ".out.pieces").exists()


def test_an_endless_line_is_refused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(records, "LONGEST_LINE", 1 << 20)
    path = tmp_path / "in.txt"
    path.write_text("mice\n" + "rats " * 300_000)
    assert_refused("line 2 is longer than 1 MiB", tmp_path, [path], tokenizer, tmp_path / "out")


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "in.jsonl: no document in it"),
        ("\n \n", "in.jsonl: no document in it"),
        ('{"title": ""}\n', "no document to train on: 1 read, 0 flagged, 1 empty, 0 held out"),
        ('{"title": "x", "in_eval_corpus": true}\n', "1 read, 1 flagged"),
    ],
)
def test_an_input_without_documents_is_refused(tmp_path, tokenizer, content, message):
    (tmp_path / "in.jsonl").write_text(content)
    assert_refused(message, tmp_path, [tmp_path / "in.jsonl"], tokenizer, tmp_path / "out")


def test_one_empty_input_among_others_is_refused(tmp_path, tokenizer):
    (tmp_path / "empty.txt").touch()
    inputs = [jsonl(tmp_path / "in.jsonl"), tmp_path / "empty.txt"]
    assert_refused("empty.txt: no document", tmp_path, inputs, tokenizer, tmp_path / "out")


def test_options_are_checked_before_any_work(tmp_path, tokenizer):
    path = jsonl(tmp_path / "in.jsonl")
    (tmp_path / "in.csv").touch()
    out = tmp_path / "out"
    assert_refused("in.csv: expected a name that ends in .txt or", tmp_path,
                   [tmp_path / "in.csv"], tokenizer, out)  # fmt: skip
    assert_refused("no.txt: no such file", tmp_path, [path, tmp_path / "no.txt"], tokenizer, out)
    for name, option, values in (
        ("length", "length", (2, -1, 2**31)),
        ("held-out", "held_out", (1, -0.1, float("nan"), float("inf"))),
        ("workers", "workers", (0, -1, 1025)),
        ("duplicates", "duplicates", ("near", "")),
    ):
        for value in values:
            changes = {option: value}
            assert_refused(
                f"--{name} is {value}, expec", tmp_path, [path], tokenizer, out, **changes
            )
    for V in (9, 0, -3, 2**63):
        message = f"--train-tokenizer is {V}, expected 10 to 1,000,000"
        assert_refused(message, tmp_path, [path], None, out, train_tokenizer=V)
    assert_refused("one of --tokenizer", tmp_path, [path], None, out)
    assert_refused("one of --tokenizer", tmp_path, [path], tokenizer, out, train_tokenizer=99)
    assert_refused("no tokenizer.json or vocab.txt", tmp_path, [path], tmp_path, out)


def test_an_output_in_use_is_kept(tmp_path, tokenizer):
    path, out = jsonl(tmp_path / "in.jsonl"), tmp_path / "out"
    run([path], tokenizer, out)
    before = files(out)
    for message, changes in (
        (
            "holds shards with length 256, not 64; choose another directory, or --over",
            {"length": 64},
        ),
        ("with held_out 0, not 0.5", {"held_out": 0.5}),
        ("with duplicates keep, not exact", {"duplicates": "exact"}),
    ):
        assert_refused(message, tmp_path, [path], tokenizer, out, **changes)
    other = jsonl(tmp_path / "other.jsonl")
    assert_refused("of other inputs, .*: in.jsonl;", tmp_path, [path, other], tokenizer, out)
    assert_refused("with tokenizer .*, not learnt, 90 pieces, cased", tmp_path, [path], None, out,
                   train_tokenizer=90)  # fmt: skip
    assert files(out) == before
    other.unlink()
    run([path], tokenizer, out, keep_eval=True, overwrite=True)
    assert len(Shards(out)) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out"]


def test_a_directory_of_other_files_is_refused(tmp_path, tokenizer):
    path, out = jsonl(tmp_path / "in.jsonl"), tmp_path / "out"
    out.mkdir()
    for name, text in (("notes", "mine"), ("counts.json", '{"options": {"length": 3}}')):
        (out / name).write_text(text)
        assert_refused("out already holds files", tmp_path, [path], tokenizer, out)


def test_what_is_read_is_not_replaced(tmp_path, tokenizer, tokenizer_dir):
    path = jsonl(tmp_path / "in.jsonl")
    assert_refused("in.jsonl is named twice", tmp_path, [path, path], tokenizer, tmp_path / "out")
    (tmp_path / "link").symlink_to(tokenizer_dir)
    for out, changes in (
        (tmp_path, {}),
        (tmp_path / "link", {"tokenizer": tokenizer_dir}),
        (tmp_path / "sets", {"exclude": [tmp_path / "sets/test.tsv"]}),
    ):
        given = {"tokenizer": tokenizer, "overwrite": True, **changes}
        with pytest.raises(InputError, match=f"--out {out} holds .*, which is read; name another"):
            run([path], out=out, **given)
    assert path.exists() and (tokenizer_dir / "vocab.txt").exists()


def test_the_same_command_again_says_that_all_is_done(tmp_path, tokenizer_dir, capsys):
    path, out = jsonl(tmp_path / "in.jsonl"), tmp_path / "out"
    command = [str(path), "--tokenizer", str(tokenizer_dir), "--out", str(out), "--held-out", "0.5",
               "--workers", "1"]  # fmt: skip
    assert main(command) == 0
    before = files(out)
    (tmp_path / ".out.pieces" / "0").mkdir(parents=True)  # killed as these were to be removed
    (tmp_path / ".out.lock").touch()
    capsys.readouterr()
    assert main(command) == 0
    shown = capsys.readouterr().out
    tokens = sum(Shards(out, split).n_tokens for split in ("train", "held-out"))
    assert shown == f"{out} is complete: 4 examples, {tokens} tokens; --overwrite starts again\n"
    assert files(out) == before and not list(tmp_path.glob(".out*"))
    assert main([*command, "--overwrite"]) == 0 and files(out) == before


@pytest.mark.parametrize("n, share", [(5, 0.01), (300, 1e-9)])
def test_none_held_out_is_refused(tmp_path, tokenizer, n, share):
    path = jsonl(tmp_path / "in.jsonl", [{"id": i, "title": f"mice {i}"} for i in range(n)])
    message = f"none of {n} documents is held out .* --held-out {share}; name more documents, or a"
    assert_refused(message, tmp_path, [path], tokenizer, tmp_path / "out", held_out=share)


def test_the_command_refuses_to_hold_none_out(tmp_path, tokenizer_dir):
    path = jsonl(tmp_path / "in.jsonl")
    with pytest.raises(InputError, match="--held-out is 0, expected a share above 0"):
        main([str(path), "--tokenizer", str(tokenizer_dir), "--out", "x", "--held-out", "0"])


def test_the_loss_by_cutting_is_said(tmp_path, tokenizer_dir, capsys):
    """One long line is not 256 tokens without a word."""
    (tmp_path / "in.txt").write_text("mice rats " * 50_000 + "\nzinc\nzinc in mice\n")
    command = [str(tmp_path / "in.txt"), "--tokenizer", str(tokenizer_dir), "--held-out", "0.5",
               "--workers", "1"]  # fmt: skip
    assert main([*command, "--out", str(tmp_path / "cut")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "1 of 3 documents cut, about 99.7% of the tokens; --split-long keeps them"
    )
    assert main([*command, "--split-long", "--out", str(tmp_path / "split")]) == 0
    assert "--split-long keeps" not in capsys.readouterr().out


# the same bytes, however they are made

WORDS = "aspirin in mice it helps is cheap zinc rats an abstract alone not flagged".split()


def random_records(n, seed=0):
    """Records with ids, versions, texts that come again, long ones and ones without an id."""
    rng = np.random.Generator(np.random.Philox(key=[seed, n]))
    for i in range(n):
        text = " ".join(rng.choice(WORDS, rng.integers(1, 60))) + ". "
        record = {"title": text, "abstract": " ".join(rng.choice(WORDS, 30)) + "."}
        if i % 5:
            record |= {"pmid": str(i % (n - 9)), "version": int(rng.integers(1, 3))}
        yield record
        if i % 11 == 0:
            yield {"id": f"copy {i}", "title": text.upper(), "abstract": record["abstract"]}


def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


FULL = {"held_out": 0.1, "length": 40, "duplicates": "exact"}


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Two inputs of some blocks each, and an evaluation set of which a few sentences are there."""
    monkeypatch.setattr(records, "BLOCK", 8 << 10)
    rows = list(random_records(700))
    paths = [jsonl(tmp_path / "a.jsonl", rows[:400]),
             jsonl(tmp_path / "b.jsonl.gz", rows[400:], gzip.open)]  # fmt: skip
    leaked = [rows[i]["abstract"] for i in range(0, 700, 100)]
    (tmp_path / "test.tsv").write_text(
        "\n".join(f"{i}\t{text}\t1" for i, text in enumerate(leaked))
    )
    return paths


@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.slow), {"split_long": True}]
)
def test_output_does_not_depend_on_the_workers(tmp_path, tokenizer, inputs, options):
    options = {**FULL, **options, "exclude": [tmp_path / "test.tsv"]}
    counts = [
        run(inputs, tokenizer, tmp_path / f"out{n}", workers=n, **options) | {"seconds": 0}
        for n in (1, 3)
    ]
    found = [files(tmp_path / f"out{n}") for n in (1, 3)]
    assert found[0] == found[1] and counts[0] == counts[1]
    c = counts[0]
    for name in ("older version", "exact duplicate", "holds a test sentence"):
        assert c[f"dropped: {name}"] > 3, name
    read = c["documents to train on"] + c["documents held out"]
    assert c["documents read"] == read + sum(v for k, v in c.items() if k.startswith("dropped"))
    assert (c["documents cut short"] > 100) == (not options.get("split_long"))
    assert (c["examples"] > read) == bool(options.get("split_long"))
    assert json.loads(found[0]["counts.json"])["examples"] == c["examples"]
    [row] = json.loads(found[0]["leakage.json"])["sets"]
    assert row["citations dropped"] == c["dropped: holds a test sentence"] and row["found"] == 7
    assert list(verify(tmp_path / "out1")) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from data.shard import pieces, records
from data.shard.shard import shard
records.BLOCK = 8 << 10
make, made = pieces.Maker.__call__, []
def stop(maker, task):
    made.append(task)
    if len(made) == int(sys.argv[1]):
        if sys.argv[2] == "within":
            Path(task[1].parent, f".{task[1].name}.npz.new").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    return make(maker, task)
pieces.Maker.__call__ = stop
shard(sys.argv[5:], sys.argv[3], sys.argv[4], held_out=0.1, length=40, duplicates="exact")
"""


@pytest.mark.parametrize("at, where", [(1, "between"), (6, "within"), (14, "between")])
def test_a_killed_run_goes_on(tmp_path, tokenizer_dir, inputs, monkeypatch, at, where):
    """Killed at the first block, in the first input, in the second: the same bytes, and what was
    whole is not made again."""
    run(inputs, tokenizer_dir, tmp_path / "whole", **FULL)
    command = ["-c", KILLED, at, where, tokenizer_dir, tmp_path / "out", *inputs]
    ((status, _, error),) = processes(1, command)
    assert status == -signal.SIGKILL, error
    assert not (tmp_path / "out").exists()
    place = tmp_path / ".out.pieces"
    assert len(list(place.glob("*/*.npz"))) == at - 1
    made = []
    monkeypatch.setattr(Maker, "__call__", lambda self, task: made.append(task) or call(self, task))
    run(inputs, tokenizer_dir, tmp_path / "out", **FULL)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    n = sum(1 for path in inputs for _ in records.blocks(path))
    assert len(made) == n - (at - 1) and 14 < n
    assert not place.exists() and not list(tmp_path.glob(".*"))


call = Maker.__call__


def test_a_run_that_fails_at_the_end_goes_on_from_its_pieces(tmp_path, tokenizer, inputs,
                                                            monkeypatch):  # fmt: skip
    """The disk fills up while the shards are written: nothing is tokenised again."""
    with monkeypatch.context() as patch:
        patch.setattr("data.shard.shard.write_splits", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(inputs, tokenizer, tmp_path / "out", **FULL)
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Maker, "__call__", None)
        run(inputs, tokenizer, tmp_path / "out", **FULL)
    run(inputs, tokenizer, tmp_path / "whole", **FULL)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_more_data_changes_no_side(tmp_path, tokenizer):
    """A document held out today is held out when others are added before and after it."""
    rows = [{"pmid": i, "title": f"mice {i}"} for i in range(300)]
    more = [{"pmid": i, "title": f"mice {i}"} for i in range(1000, 1100)]
    sides = []
    for name, some in (("few", rows), ("many", more[:50] + rows + more[50:])):
        run([jsonl(tmp_path / f"{name}.jsonl", some)], tokenizer, tmp_path / name, held_out=0.2)
        sides.append([set(texts(tmp_path / name, split)) for split in ("train", "held-out")])
    assert all(few < many for few, many in zip(*sides, strict=True))


def test_the_newest_version_stays_wherever_it_stands(tmp_path, tokenizer):
    rows = [{"pmid": 1, "version": 2, "title": "mice"}, {"pmid": 1, "version": 1, "title": "rats"},
            {"pmid": 2, "title": "zinc"}, {"pmid": 2, "title": "zinc alone"}]  # fmt: skip
    path = jsonl(tmp_path / "in.jsonl", rows)
    run([path], tokenizer, tmp_path / "out", duplicates="exact")
    assert texts(tmp_path / "out") == ["mice", "zinc alone"]
    run([path], tokenizer, tmp_path / "all")
    assert len(texts(tmp_path / "all")) == 4


@pytest.mark.slow
def test_memory_stays_under_its_bound(tmp_path, tokenizer_dir):
    """Peak memory of a whole run, duplicates and all, on an input and on ten times as much."""
    code = (
        "import sys; from data.shard import records; records.BLOCK = 1 << 18\n"
        "from data.shard.shard import shard\n"
        "shard(sys.argv[3:], sys.argv[1], sys.argv[2], duplicates='exact', progress=False)\n"
        "print(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')).split()[1])"
    )
    if not os.path.exists("/proc/self/status"):
        pytest.skip("the system does not show a process its peak memory")
    peaks = []
    for n in (600, 6000):
        path = jsonl(tmp_path / f"{n}.jsonl", random_records(n))
        done = subprocess.run(
            [sys.executable, "-c", code, tokenizer_dir, tmp_path / str(n), path], cwd=ROOT,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 25 and peaks[1] < 250, f"{peaks} MiB"


# the command


def test_verify_says_whole_or_names_the_fault(tmp_path, tokenizer, capsys):
    out = tmp_path / "out"
    run([jsonl(tmp_path / "in.jsonl")], tokenizer, out)
    assert main(["--verify", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: whole\n"
    file = out / "train-00000.bin"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert main(["--verify", str(out)]) == 1
    *faults, verdict = capsys.readouterr().out.splitlines()
    assert [fault.startswith(f"{file}: ") for fault in faults] == [True, True]
    assert "document 3 (byte" in faults[0] and "tokens (bytes" in faults[1]
    assert verdict == f"{out}: damaged, 2 fault(s)"
    ((status, _, error),) = processes(1, ["-m", "data.shard", "--verify", out])
    assert status == 1 and error == ""


def test_the_command_reports_leakage(tmp_path, tokenizer_dir, capsys):
    sentence = "aspirin helps in mice and it is cheap and zinc helps in rats alone"
    (tmp_path / "test.txt").write_text(sentence)
    rows = [{"pmid": 5, "title": f"Rats. {sentence.title()}."}, {"pmid": 6, "title": "Mice."},
            {"pmid": 7, "title": "Rats."}, {"pmid": 9, "title": "Zinc."}]  # fmt: skip
    path = jsonl(tmp_path / "in.jsonl", rows)
    main([str(path), "--tokenizer", str(tokenizer_dir), "--out", str(tmp_path / "out"),
          "--held-out", "0.5", "--workers", "1", "--exclude", str(tmp_path / "test.txt"),
          "--duplicates", "exact"])  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].split()[-5:] == ["1", "0", "1", "0", "1"]
    kept = [text for split in ("train", "held-out") for text in texts(tmp_path / "out", split)]
    assert sorted(kept) == ["mice.", "rats.", "zinc."]
    [row] = json.loads((tmp_path / "out" / "leakage.json").read_text())["sets"]
    assert row["examples"] == [{"citation": "5", "sentence": sentence}]


def test_the_command_needs_inputs_or_verify():
    with pytest.raises(InputError, match="expected INPUT... and --out DIR, or --verify DIR"):
        main(["--tokenizer", "x"])


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        ("data.shard --lengt 3", "--lengt is not an option; did you mean --length?"),
        ("data.shard in.txt --length many", "--length: invalid int value: 'many'"),
        ("data.pubmed in.xml", "the following arguments are required: --out"),
    ],
)
def test_refused_options_are_one_line(command, refusal):
    name, *_ = words = command.split()
    ((status, _, error),) = processes(1, ["-m", *words])
    assert (status, error) == (2, f"{name}: error: {refusal}\n")


def test_the_command_prints_the_count_table(tmp_path, tokenizer_dir, capsys):
    path = jsonl(tmp_path / "in.jsonl")
    main([str(path), "--tokenizer", str(tokenizer_dir), "--out", str(tmp_path / "out"),
          "--length", "64", "--held-out", "0.5"])  # fmt: skip
    printed = capsys.readouterr()
    rows = {line[:30].strip(): line[30:].strip() for line in printed.out.splitlines()}
    assert rows["documents read"] == "7"
    assert int(rows["documents to train on"]) + int(rows["documents held out"]) == 4
    assert rows["[UNK] share"] == "0.0000%" and printed.err == ""


def test_the_command_learns_a_vocabulary(tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"Mice and Rats {i}\n" for i in range(9)))
    main([str(tmp_path / "in.txt"), "--train-tokenizer", "60", "--uncased",
          "--out", str(tmp_path / "out"), "--held-out", "0.5", "--workers", "1"])  # fmt: skip
    t = Tokenizer.from_dir(tmp_path / "out")
    assert (t.V, t.cased, tuple(t.pieces[:5])) == (60, False, SPECIAL)
    with pytest.raises(InputError, match="--uncased goes with --train-tokenizer"):
        main(["x.txt", "--tokenizer", ".", "--uncased", "--out", "y"])


def test_bad_input_ends_in_one_line_and_status_2(tmp_path, tokenizer_dir):
    (tmp_path / "in.jsonl").write_text("not json\n")
    command = ["-m", "data.shard", tmp_path / "in.jsonl", "--tokenizer", tokenizer_dir,
               "--out", tmp_path / "out"]  # fmt: skip
    ((status, printed, error),) = processes(1, command)
    assert status == 2 and printed == ""
    assert len(error.splitlines()) == 1
    assert error.startswith(f"data.shard: error: {tmp_path / 'in.jsonl'}: line 1: ")
    assert not (tmp_path / "out").exists()
