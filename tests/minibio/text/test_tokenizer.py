"""WordPiece: equal to transformers' on any text, casing guarded, training repeatable."""

import json
import logging
import lzma
import math
import os
import random
import shutil
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import ROOT, real_data
from minibio.run.errors import InputError
from minibio.text.tokenizer import SPECIAL, Tokenizer, build, unused_slots

TEXTS = [
    "Interleukin-2 (IL-2) activates T cells in BALB/c mice.",
    "Expression of BRCA1 and BRCA2 in Ångström-scale naïve cells: a cohort study.",
    "The protein kinase phosphorylates p53; 中文 appears rarely, α-synuclein often.",
    "Patients received 10 mg/kg of cisplatin. Toxicity was mild in the cisplatin group.",
] * 3

NASTY = [
    "", " ", "\t\r\n", "中文 abc中文", "Ünïcödé ÉCOLE naïve Ångström", "e\u0301 E\u0301\u0301",
    "a\x00b\x01c\x7fd\u200be\u200df\ufeffg", "x" * 100 + " ok " + "y" * 101, "😀 IL-2😀 👩‍👩‍👧",
    "[MASK] x [SEP]", "[CLS][PAD] [unused1] [mask]", "İstanbul ẞ ß ǅ ﬁ Σς", "ＡＢＣ１２３",
    "a\u00a0b\u2003c\u3000d\u2028e", "\ufffd \ud7ff \U0010ffff", "ア イ 가나다 한글 \U00020000",
    "α-synuclein Β-cell μm µg 10⁻⁶ H₂O", "don't - _a_ $5 100%", "\u202eabc\u00adde",
]  # fmt: skip


def write_dir(path, pieces, **config):
    """A directory with vocab.txt, and tokenizer_config.json where there is a config."""
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_bytes("".join(f"{piece}\n" for piece in pieces).encode())
    if config:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def real_dir(path, name, **config):
    """One of BERT's own vocabularies as a directory."""
    pieces = real_data(f"vocab/bert-base-{name}-vocab.txt").read_text("utf-8").split("\n")[:-1]
    return write_dir(path, pieces, **config)


@pytest.fixture(scope="module", params=[True, False], ids=["cased", "uncased"])
def trained(request, tmp_path_factory):
    """(ours, transformers' on the saved directory), over a small vocabulary trained here."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("trained")
    ours = Tokenizer.train(TEXTS, 220, cased=request.param)
    ours.save(path)
    return ours, transformers.AutoTokenizer.from_pretrained(path), path


# equal to transformers


@pytest.mark.parametrize("name, cased", [("cased", True), ("uncased", False)])
def test_ids_of_real_abstracts_equal_transformers(tmp_path, name, cased):
    transformers = pytest.importorskip("transformers")
    with lzma.open(real_data("pubmed/abstracts.jsonl.xz"), "rt", encoding="utf-8") as file:
        records = [json.loads(next(file)) for _ in range(200)]
    texts = [f"{r['title']} {r['abstract']}" for r in records] + NASTY
    ours = Tokenizer.from_dir(real_dir(tmp_path, name))
    theirs = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"), do_lower_case=not cased)
    assert ours.encode_batch(texts) == theirs(texts)["input_ids"]
    cut = theirs(texts, truncation=True, max_length=64)["input_ids"]
    assert ours.encode_batch(texts, length=64) == cut


def test_nasty_texts_equal_transformers(trained):
    ours, theirs, _ = trained
    for text in NASTY:
        assert ours.encode(text) == theirs(text)["input_ids"], text


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    text=st.text(
        st.characters(exclude_categories=["Cs"]) | st.sampled_from("aBé中\u0301\u200b-.[]# "),
        max_size=40,
    )
)
def test_any_text_equals_transformers(trained, text):
    ours, theirs, _ = trained
    assert ours.encode(text) == theirs(text)["input_ids"]


def test_saved_directory_loads_in_transformers_without_a_warning(trained, caplog, recwarn):
    transformers = pytest.importorskip("transformers")
    ours, _, path = trained
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        theirs = transformers.AutoTokenizer.from_pretrained(path)
        theirs(TEXTS)
    transformers.utils.logging.disable_propagation()
    assert not caplog.records and not [w for w in recwarn if "oken" in str(w.message)]
    assert len(theirs) == ours.V and theirs.model_max_length == 512
    specials = ("pad", "unk", "cls", "sep", "mask")
    assert [getattr(theirs, f"{name}_token_id") for name in specials] == [0, 1, 2, 3, 4]


def test_saved_directory_comes_back_equal(trained, tmp_path):
    ours, _, path = trained
    back = Tokenizer.from_dir(path)
    assert (back.pieces, back.cased, back.fingerprint) == (
        ours.pieces, ours.cased, ours.fingerprint
    )  # fmt: skip
    assert back.encode_batch(NASTY) == ours.encode_batch(NASTY)
    (path / "tokenizer.json").rename(tmp_path / "kept")  # vocab.txt alone says the same
    assert Tokenizer.from_dir(path).fingerprint == ours.fingerprint
    assert Tokenizer.from_dir(path).encode_batch(NASTY) == ours.encode_batch(NASTY)
    (tmp_path / "kept").rename(path / "tokenizer.json")


def test_truncation_and_padding_of_a_file_do_not_come_along(trained, tmp_path):
    """Sentence encoders are published with both; here the caller gives the length."""
    ours, _, path = trained
    backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    theirs = Tokenizer.from_dir(tmp_path)
    assert theirs.encode_batch(TEXTS + NASTY) == ours.encode_batch(TEXTS + NASTY)
    assert theirs.encode_offsets(TEXTS) == ours.encode_offsets(TEXTS)


# the interface


def test_special_tokens_are_found_by_name(tmp_path):
    pieces = ["a", "[MASK]", "[SEP]", "b", "[UNK]", "[CLS]", "##b", "[PAD]"]
    t = Tokenizer.from_dir(write_dir(tmp_path, pieces))
    assert (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id) == (7, 4, 5, 2, 1)
    assert t.special_ids == (1, 2, 4, 5, 7)
    assert t.encode("ab a ?") == [5, 0, 6, 0, 4, 2]
    assert (t.V, t.pieces, t.vocab["##b"]) == (8, pieces, 6)


def test_length_counts_both_ends(trained):
    ours, _, _ = trained
    whole = ours.encode(TEXTS[0])
    for length in range(2, len(whole) + 3):
        cut = ours.encode(TEXTS[0], length)
        assert len(cut) == min(length, len(whole))
        assert cut[:-1] == whole[: len(cut) - 1] and cut[-1] == ours.sep_id
    with pytest.raises(ValueError, match="expected at least 2"):
        ours.encode(TEXTS[0], 1)


def test_words_alone_have_no_special_tokens(trained):
    ours, _, _ = trained
    words = ["mice", "\u200b", "IL-2", "", "☃"]
    pieces = ours.encode_words(words)
    assert pieces[1] == pieces[3] == [] and pieces[4] == [ours.unk_id]
    assert [ours.cls_id, *pieces[0], *pieces[2], ours.sep_id] == ours.encode("mice IL-2")


def test_offsets_are_characters_of_the_text(trained):
    ours, _, _ = trained
    text = "😀 naïve 中文 IL-2\u200b ÉCOLE"
    ((ids, offsets),) = ours.encode_offsets([text])
    assert [ours.cls_id, *ids, ours.sep_id] == ours.encode(text)
    words = ["".join(text[a:b] for a, b in offsets)]
    assert words == [text.replace(" ", "").replace("\u200b", "")]
    assert offsets[0] == (0, 1)  # a character outside the basic plane counts once


def test_decode_leaves_out_special_tokens(trained):
    ours, _, _ = trained
    text = "the cisplatin group"
    assert ours.decode(ours.encode(text)) == text


def test_fingerprint_tells_pieces_and_casing(tmp_path):
    letters = [*SPECIAL, "1", "2"]  # no letter: either casing agrees with it
    prints = {
        Tokenizer.from_dir(write_dir(tmp_path / "a", letters)).fingerprint,
        Tokenizer.from_dir(write_dir(tmp_path / "b", [*SPECIAL, "2", "1"])).fingerprint,
        Tokenizer.from_dir(write_dir(tmp_path / "c", [*SPECIAL, "A", "a"])).fingerprint,
        Tokenizer.from_dir(write_dir(tmp_path / "d", [*SPECIAL, "a", "A"])).fingerprint,
    }
    assert len(prints) == 4
    again = Tokenizer.from_dir(write_dir(tmp_path / "e", letters))
    assert again.fingerprint in prints
    prints.add(Tokenizer(build(again.vocab, cased=True), cased=True).fingerprint)
    assert len(prints) == 5


def test_check_vocab_names_both_sizes(trained):
    ours, _, _ = trained
    ours.check_vocab(220, "teacher")
    with pytest.raises(InputError, match="^teacher: the tokenizer has 220 pieces, the model 1,000"):
        ours.check_vocab(1000, "teacher")


def test_find_is_none_where_there_is_no_tokenizer(tmp_path):
    assert Tokenizer.find(tmp_path) is None
    assert Tokenizer.find(tmp_path / "nowhere") is None
    assert Tokenizer.find(write_dir(tmp_path / "there", [*SPECIAL, "a"])).V == 6


# casing


@pytest.mark.parametrize("name, cased", [("cased", True), ("uncased", False)])
def test_bare_vocab_txt_tells_its_own_casing(tmp_path, name, cased):
    t = Tokenizer.from_dir(real_dir(tmp_path, name))
    assert (t.cased, t.V) == (cased, 28996 if cased else 30522)
    upper, lower = t.encode("Mouse"), t.encode("mouse")
    assert (upper == lower) is not cased and t.unk_id not in upper


@pytest.mark.parametrize("name, lowers", [("cased", True), ("uncased", False)])
def test_casing_against_the_vocabulary_is_refused(tmp_path, name, lowers):
    path = real_dir(tmp_path, name, do_lower_case=lowers)
    expected = "8,366 pieces .* have capital letters" if lowers else "would become .UNK."
    with pytest.raises(InputError, match=f"tokenizer_config.json asks for .*{expected}"):
        Tokenizer.from_dir(path)


@pytest.mark.parametrize("cased", [True, False])
def test_casing_of_tokenizer_json_is_refused_too(tmp_path, cased):
    Tokenizer.train(TEXTS, 220, cased).save(tmp_path)
    file = tmp_path / "tokenizer.json"
    spec = json.loads(file.read_text())
    spec["normalizer"]["lowercase"] = cased  # the contrary
    file.write_text(json.dumps(spec))
    assert Tokenizer.from_dir(tmp_path).cased == cased  # tokenizer_config.json wins
    config = tmp_path / "tokenizer_config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({k: x for k, x in said.items() if k != "do_lower_case"}))
    with pytest.raises(InputError, match="normalizer.lowercase of .*tokenizer.json asks for"):
        Tokenizer.from_dir(tmp_path)


def test_special_pieces_and_unchangeable_capitals_do_not_make_a_vocabulary_cased(tmp_path):
    t = Tokenizer.from_dir(write_dir(tmp_path, [*SPECIAL, "[unused1]", "[X]", "ℝ", "a"]))
    assert not t.cased  # ℝ has no lower-case form; it stands in BERT's uncased vocabulary


@pytest.mark.parametrize("value", ["no", 0])
def test_casing_must_be_true_or_false(tmp_path, value):
    with pytest.raises(InputError, match=f"do_lower_case is {value!r}, expected true or false"):
        Tokenizer.from_dir(write_dir(tmp_path, [*SPECIAL, "a"], do_lower_case=value))


# bad files: one line that says where


@pytest.mark.parametrize(
    "content, message",
    [
        (b"[PAD]\nab\n\xff\xfe\ncd\n", "vocab.txt: line 3 is not UTF-8"),
        (b"[PAD]\n\nab\n", "vocab.txt: line 2 is blank"),
        (b"[PAD]\nab\n  \n", "vocab.txt: line 3 is blank"),
        (b"[PAD]\nab\ncd\nab\n", "vocab.txt: line 4 repeats 'ab' of line 2"),
        (b"", "vocab.txt: the file is empty"),
        (b"[PAD]\n[UNK]\n[CLS]\na\n", r"vocab.txt: the vocabulary lacks \[SEP\], \[MASK\]"),
    ],
)
def test_bad_vocab_txt(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        Tokenizer.from_dir(tmp_path)
    assert "\n" not in str(error.value)


def test_vocab_txt_of_another_system(tmp_path):
    """Lines that end in CR LF, a last line without an end, a piece that is a rare space."""
    pieces = [*SPECIAL, "a", "\u2028", "##b"]
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(pieces).encode())
    t = Tokenizer.from_dir(tmp_path)
    assert t.pieces == pieces and t.encode("ab") == [2, 5, 7, 3]


@pytest.mark.parametrize("damage", ["cut", "bpe", "number", "list", "no vocab", "hole"])
def test_bad_tokenizer_json(tmp_path, damage):
    Tokenizer.train(TEXTS, 220).save(tmp_path)
    file = tmp_path / "tokenizer.json"
    text, spec = file.read_text(), json.loads(file.read_text())
    if damage == "bpe":
        spec["model"]["type"] = "BPE"
    elif damage == "number":
        spec["model"] = 7
    elif damage == "no vocab":
        del spec["model"]["vocab"]
    elif damage == "hole":
        spec["model"]["vocab"].popitem()
        spec["model"]["vocab"]["beyond"] = 500
    elif damage == "list":
        spec = [spec]
    file.write_text(text[: len(text) // 2] if damage == "cut" else json.dumps(spec))
    with pytest.raises(InputError, match="tokenizer.json") as error:
        Tokenizer.from_dir(tmp_path)
    assert "\n" not in str(error.value)


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(InputError, match="no tokenizer.json or vocab.txt there"):
        Tokenizer.from_dir(tmp_path)


# tokens added to a vocabulary


@pytest.mark.parametrize("form", ["tokenizer.json", "added_tokens.json", "added_tokens_decoder"])
def test_added_tokens_are_counted(tmp_path, form):
    transformers = pytest.importorskip("transformers")
    base = Tokenizer.train(TEXTS, 220)
    base.save(tmp_path)
    if form == "tokenizer.json":
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        theirs.add_tokens(["[E1]", "[E2]"])
        theirs.save_pretrained(tmp_path)
    else:
        (tmp_path / "tokenizer.json").unlink()
        file = tmp_path / "tokenizer_config.json"
        config = json.loads(file.read_text())
        if form == "added_tokens.json":
            (tmp_path / form).write_text(json.dumps({"[E2]": 221, "[E1]": 220}))
        else:
            flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "special"), False)
            config[form] = {
                str(i): {"content": token, "normalized": True, **flags}
                for i, token in ((220, "[E1]"), (221, "[E2]"), (4, "[MASK]"), (0, "[PAD]"))
            }
        file.write_text(json.dumps(config))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours, text = Tokenizer.from_dir(tmp_path), "the [E1] protein [E2] kinase"
    assert ours.V == len(theirs) == 222 and ours.pieces[220:] == ["[E1]", "[E2]"]
    assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.fingerprint != base.fingerprint
    ours.save(tmp_path / "again")
    again = Tokenizer.from_dir(tmp_path / "again")
    assert again.encode(text) == ours.encode(text) and again.fingerprint == ours.fingerprint


def test_added_tokens_must_follow_the_vocabulary(tmp_path):
    path = write_dir(tmp_path, [*SPECIAL, "a"])
    (path / "added_tokens.json").write_text(json.dumps({"[E1]": 9}))
    with pytest.raises(InputError, match=r"'\[E1\]' has id 9, expected 6"):
        Tokenizer.from_dir(path)


# training


def test_trained_vocabulary_has_v_pieces_and_knows_its_words():
    t = Tokenizer.train(TEXTS, 220)
    assert t.V == 220 and tuple(t.pieces[:5]) == SPECIAL and t.cased
    assert "cisplatin" in t.vocab and "##2" in t.vocab
    assert "##." not in t.vocab  # punctuation is always a word of its own
    assert all(t.unk_id not in t.encode(text) for text in TEXTS)
    uncased = Tokenizer.train(TEXTS, 220, cased=False)
    assert not uncased.cased and not any(p != p.lower() for p in uncased.pieces[5:])


def test_a_poor_text_is_filled_up_and_a_small_vocabulary_keeps_frequent_letters():
    t = Tokenizer.train(["Aa b"], 40)
    assert t.V == 40 and t.pieces[-1].startswith("[unused")
    small = Tokenizer.train(["BBBB aaaa c"], 10)  # room for two letters, each in both forms
    assert small.V == 10 and set(small.pieces[5:9]) == {"B", "a", "##B", "##a"}


def test_training_refuses_what_it_cannot_learn_from():
    with pytest.raises(ValueError, match="walked only once"):
        Tokenizer.train(iter(TEXTS), 220)
    with pytest.raises(InputError, match="no text"):
        Tokenizer.train(["", " \t"], 220)
    with pytest.raises(InputError, match="no capital letter"):
        Tokenizer.train(["all in small letters"], 220)
    with pytest.raises(InputError, match="vocabulary of 9 pieces, expected at least 10"):
        Tokenizer.train(TEXTS, 9)


TRAIN_IN_A_NEW_PROCESS = """
import random
from minibio.text.tokenizer import Tokenizer
rng = random.Random(0)
letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZαβγδεζηθικλμν"
words = ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(600)]
texts = [" ".join(rng.choices(words, k=30)) for _ in range(200)]
print(Tokenizer.train(texts, 600).fingerprint)
"""


@pytest.mark.slow
def test_training_is_the_same_in_every_process():
    """Ties abound in random words; hash seeds and thread counts must not decide them."""
    prints = {
        subprocess.run(
            [sys.executable, "-c", TRAIN_IN_A_NEW_PROCESS], cwd=ROOT, check=True,
            capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed), "RAYON_NUM_THREADS": threads},
        ).stdout
        for seed, threads in ((1, "1"), (2, "4"), (3, "2"))
    }  # fmt: skip
    assert len(prints) == 1, prints


def test_order_of_texts_does_not_change_the_vocabulary():
    texts = TEXTS[:4]
    shuffled = random.Random(1).sample(texts, len(texts))
    assert Tokenizer.train(texts, 200).pieces == Tokenizer.train(shuffled, 200).pieces


def test_real_vocabulary_survives_saving(tmp_path):
    t = Tokenizer.from_dir(real_dir(tmp_path / "real", "cased", do_lower_case=False))
    t.save(tmp_path / "saved")
    original = real_data("vocab/bert-base-cased-vocab.txt").read_bytes()
    assert (tmp_path / "saved" / "vocab.txt").read_bytes() == original
    shutil.rmtree(tmp_path / "real")
    assert Tokenizer.from_dir(tmp_path / "saved").fingerprint == t.fingerprint


# what people's files say of casing


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize(
    "said",
    [
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": True, "tokenize_chinese_chars": False},
        {"do_lower_case": False, "strip_accents": None, "tokenize_chinese_chars": True},
    ],
)
def test_tokenizer_config_wins_over_tokenizer_json_as_in_transformers(tmp_path, said, lowercase):
    from transformers import AutoTokenizer

    texts = [*TEXTS, "Élan élan 中文"]
    Tokenizer.train(texts, 220, cased=not said["do_lower_case"]).save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["normalizer"]["lowercase"] = lowercase
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    config = {"tokenizer_class": "BertTokenizer", **said}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for _ in range(2):  # with tokenizer.json, and with vocab.txt only
        ours = Tokenizer.from_dir(tmp_path)
        assert ours.cased is not said["do_lower_case"]
        for text in (*texts[-5:], "Élan of BRCA1 in 中文, naïve Aspirin"):
            assert ours.encode(text) == theirs(text)["input_ids"], text
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)


UNUSED = [f"[unused{i}]" for i in range(20)]
LETTERS = [chr(97 + i) for i in range(26)]
PIECES = [*LETTERS, *(f"##{c}" for c in LETTERS), "gene", "cancer"]


def in_slots(*pieces):
    """A lower-case vocabulary like BERT's, some of its [unused] slots taken by these pieces."""
    slots = list(UNUSED)
    slots[5 : 5 + len(pieces)] = pieces
    return ["[PAD]", *slots, "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]


@pytest.mark.parametrize(
    "pieces",
    [
        in_slots("@GENE$", "@DISEASE$"),  # no text reaches them: words end at punctuation
        in_slots("GENE", "Disease", "BRCA"),
        [*in_slots(), "@CHEMICAL$"],
        [*in_slots("@GENE$"), "[E1]", "[/E1]"],
    ],
)
@pytest.mark.parametrize("said", [{}, {"do_lower_case": True}])
def test_pieces_that_no_text_reaches_and_those_in_unused_slots_are_no_evidence(
    tmp_path, pieces, said
):
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    if said:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    ours = Tokenizer.from_dir(tmp_path)
    assert not ours.cased
    assert ours.decode(ours.encode("Gene in CANCER")) == "gene in cancer"
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(InputError, match="no lower-casing, but no piece"):
        Tokenizer.from_dir(tmp_path)


def test_unused_slots_lie_between_neighbours_whose_numbers_go_with_the_ids():
    pieces = ["A", "[unused1]", "B", "C", "[unused4]", "D", "[unused9]", "E"]
    assert unused_slots({piece: i for i, piece in enumerate(pieces)}) == {2, 3}


def test_a_capital_in_the_vocabulary_itself_is_evidence(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*in_slots("@GENE$"), "Gene", "A"]) + "\n")
    assert Tokenizer.from_dir(tmp_path).cased
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(InputError, match="asks for lower-casing, but 2 pieces"):
        Tokenizer.from_dir(tmp_path)


def test_a_few_capitalised_words_added_to_a_lower_case_vocabulary_contradict_nothing(tmp_path):
    many = [f"w{a}{b}" for a in LETTERS for b in LETTERS]
    (tmp_path / "vocab.txt").write_text("\n".join([*in_slots(), *many, "COVID"]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert not Tokenizer.from_dir(tmp_path).cased


@pytest.mark.parametrize("key", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
@pytest.mark.parametrize("value", ["true", 1, [], {}])
def test_what_is_neither_true_nor_false_is_refused(tmp_path, key, value):
    Tokenizer.train(TEXTS, 220).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(InputError, match=f"tokenizer_config.json: {key} is .*true or false"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(
            ("tokenizer_config.json", {"added_tokens_decoder": value})
            for value in (
                5, "x", ["x"], {"a": {"content": "x"}}, {"": {"content": "x"}}, {"220": {}},
                {"220": "x"}, {"220": {"content": 5}}, {"220": None}, {"-1": {"content": "x"}},
                {"9" * 5000: {"content": "x"}}, {"220": {"content": "\ud800"}},
            )
        ),
        *(
            ("added_tokens.json", {"x": value})
            for value in ("y", None, [1], {}, 2.5, True, -1, math.inf)
        ),
        ("added_tokens.json", {"\udc80": 220}),
    ],
)  # fmt: skip
def test_added_tokens_of_another_form_are_refused(tmp_path, file, content):
    Tokenizer.train(TEXTS, 220).save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{file}: .*expected") as error:
        Tokenizer.from_dir(tmp_path)
    assert len(str(error.value)) < 500 + len(str(tmp_path)) and "\n" not in str(error.value)


def test_a_table_padded_for_speed_has_the_vocabulary(trained):
    ours, _, _ = trained
    for V in (220, 224, 256):
        ours.check_vocab(V, "model")
    for V in (216, 221, 225, 257, 300):
        with pytest.raises(InputError, match=f"220 pieces, the model {V}"):
            ours.check_vocab(V, "model")


def test_a_byte_order_mark_is_no_part_of_the_first_piece(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(in_slots()) + "\n", "utf-8-sig")
    assert Tokenizer.from_dir(tmp_path).pieces == in_slots()
