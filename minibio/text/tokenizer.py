"""WordPiece, cased and uncased: text to token ids and back.

The work is done by the `tokenizers` package, with the rules of BERT: clean the text, set Chinese
characters apart, in an uncased vocabulary lower-case and strip accents, split at spaces and
punctuation, then cut each word greedily into the longest pieces of the vocabulary.

What this file adds is care about casing. A cased vocabulary behind a lower-casing tokenizer never
fails, it only forgets every capital letter; an uncased one without lower-casing turns every name
into [UNK]. Both are common in the wild, so what the files say is held against the vocabulary, and a
contradiction is refused. Where they say nothing, the vocabulary decides.
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from minibio.run import fingerprint
from minibio.run.errors import InputError
from minibio.run.files import check_content, read_json, write_json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0..4 in a vocabulary trained here
UNUSED = re.compile(r"\[unused(\d+)\]")
FEW = 0.01  # of the pieces: capitalised ones that were added to a lower-case vocabulary
# tokenizer_config.json's names for what tokenizer.json has in its normaliser
NORMALISING = {"tokenize_chinese_chars": "handle_chinese_chars", "strip_accents": "strip_accents"}
MAX_WORD = 100  # characters; BERT makes a longer word [UNK]
MAX_ALPHABET = 1000  # characters of a trained vocabulary, as in BERT's own


class Tokenizer:
    """WordPiece over a vocabulary of V pieces, special and added tokens included."""

    def __init__(self, backend: tokenizers.Tokenizer, cased: bool, where: str = "tokenizer"):
        """Wrap a tokenizer of the `tokenizers` package; see `from_dir` and `train`.

        Raises:
            InputError: a special token is missing, or ids are not 0 .. V-1.
        """
        backend.no_padding()
        backend.no_truncation()
        self.cased = cased
        self.vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.pieces: list[str] = sorted(self.vocab, key=self.vocab.get)
        if sorted(self.vocab.values()) != list(range(len(self.vocab))):
            raise InputError(
                f"{where}: {len(self.vocab)} pieces have ids up to {max(self.vocab.values())}, "
                f"expected each of 0 to {len(self.vocab) - 1} once; two pieces share an id or one "
                "is missing"
            )
        missing = [token for token in SPECIAL if token not in self.vocab]
        if missing:
            raise InputError(
                f"{where}: the vocabulary lacks {', '.join(missing)}; is it a BERT vocabulary?"
            )
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            self.vocab[token] for token in SPECIAL
        )
        self.special_ids: tuple[int, ...] = tuple(sorted(self.vocab[token] for token in SPECIAL))
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)],
        )
        self.backend = backend

    @property
    def V(self) -> int:
        """Pieces of the vocabulary."""
        return len(self.pieces)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of pieces and casing: what a model and its shards must have in common."""
        text = "\n".join(["cased" if self.cased else "uncased", *self.pieces])
        return fingerprint.of_bytes([text.encode()])

    def __repr__(self) -> str:
        return f"Tokenizer(V={self.V}, {'cased' if self.cased else 'uncased'})"

    # in

    @staticmethod
    def find(path: str | Path) -> "Tokenizer | None":
        """The tokenizer in a directory, or None where it holds no tokenizer file."""
        path = Path(path)
        if (path / "tokenizer.json").is_file() or (path / "vocab.txt").is_file():
            return Tokenizer.from_dir(path)
        return None

    @staticmethod
    def from_dir(path: str | Path) -> "Tokenizer":
        """The tokenizer of a Hugging Face directory.

        `tokenizer.json` is read where there is one, `vocab.txt` otherwise. What
        `tokenizer_config.json` says of casing, accents and Chinese characters wins over
        `tokenizer.json`, as in transformers; where neither says, the vocabulary decides.

        Raises:
            InputError: no tokenizer there, a damaged one, one that is not a WordPiece, or one whose
                casing contradicts its vocabulary.
        """
        path = Path(path)
        config_file = path / "tokenizer_config.json"
        config = read_json(config_file) if config_file.is_file() else {}
        said = {key: config.get(key) for key in ("do_lower_case", *NORMALISING)}
        for key, value in said.items():
            if not (value is None or isinstance(value, bool)):
                raise InputError(f"{config_file}: {key} is {value!r}, expected true or false")
        lowers = said["do_lower_case"]
        if (path / "tokenizer.json").is_file():
            file = path / "tokenizer.json"
            backend, normalizer = read_tokenizer_json(file)
            lowers = normalizer["lowercase"] if lowers is None else lowers
            cased = not lowers
            told = {ours: said[key] for key, ours in NORMALISING.items() if said[key] is not None}
            own = {**normalizer, **told, "lowercase": lowers}
            if own != normalizer:
                own.pop("type")
                backend.normalizer = normalizers.BertNormalizer(**own)
        elif (path / "vocab.txt").is_file():
            file = path / "vocab.txt"
            vocab = read_vocab(file)
            cased = casing_of(vocab) if lowers is None else not lowers
            chinese = said["tokenize_chinese_chars"] is not False
            backend = build(vocab, cased, chinese, said["strip_accents"])
            add_tokens(backend, path, config)
        else:
            raise InputError(
                f"{path}: no tokenizer.json or vocab.txt there; name the directory of a tokenizer"
            )
        where = f"normalizer.lowercase of {file}"
        if said["do_lower_case"] is not None:
            where = f"do_lower_case of {config_file}"
        check_casing(where, lowers, backend.get_vocab(with_added_tokens=False))
        return Tokenizer(backend, cased, where=str(file))

    @staticmethod
    def train(texts: Iterable[str], V: int, cased: bool = True) -> "Tokenizer":
        """A WordPiece vocabulary of V pieces learnt from `texts`, the same on every run.

        Args:
            texts: an iterable that can be walked twice (a list, not a generator): once for its
                alphabet, once for its words.
            V:     pieces, special tokens included. A text too poor for V pieces is filled up with
                [unused1], [unused2], ... as in BERT's own vocabulary.
        Raises:
            InputError: V leaves no room for an alphabet, or the texts hold no letter, or no
                capital letter where `cased`.
        """
        if iter(texts) is texts:
            raise ValueError("Tokenizer.train: texts can be walked only once, expected a list")
        if V < 2 * len(SPECIAL):
            raise InputError(f"a vocabulary of {V} pieces, expected at least {2 * len(SPECIAL)}")
        blank = build({token: i for i, token in enumerate(SPECIAL)}, cased)
        alphabet = alphabet_of(texts, blank, size=min((V - len(SPECIAL)) // 2, MAX_ALPHABET))
        if not alphabet:
            raise InputError("there is no text to learn a vocabulary from")
        # The trainer numbers "##x" pieces in the order of a hash table, which differs from run to
        # run, and breaks ties by these numbers. Given as special tokens they are numbered by us.
        inside = [f"##{char}" for char in alphabet if not is_apart(char, blank)]
        blank.train_from_iterator(
            texts,
            trainers.WordPieceTrainer(
                vocab_size=V,
                min_frequency=2,
                show_progress=False,
                limit_alphabet=len(alphabet),
                initial_alphabet=alphabet,
                special_tokens=[*SPECIAL, *inside],
            ),
        )
        learnt = blank.get_vocab(with_added_tokens=True)
        pieces = sorted(learnt, key=learnt.get)
        pieces += [f"[unused{i + 1}]" for i in range(V - len(pieces))]
        vocab = {piece: i for i, piece in enumerate(pieces)}
        if cased and not casing_of(vocab):
            raise InputError(
                "the texts hold no capital letter; learn an uncased vocabulary: --uncased"
            )
        return Tokenizer(build(vocab, cased), cased)

    # out

    def save(self, path: str | Path) -> None:
        """Write vocab.txt, tokenizer.json and tokenizer_config.json into the directory `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        base = self.backend.get_vocab(with_added_tokens=False)
        lines = "".join(f"{piece}\n" for piece in sorted(base, key=base.get))
        (path / "vocab.txt").write_bytes(lines.encode())
        (path / "tokenizer.json").write_bytes(self.backend.to_str(pretty=True).encode())
        normalizer = json.loads(self.backend.to_str())["normalizer"]
        write_json(
            path / "tokenizer_config.json",
            {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": not self.cased,
                "strip_accents": normalizer["strip_accents"],
                "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
                "model_max_length": 512,
                **{f"{token[1:-1].lower()}_token": token for token in SPECIAL},
            },
        )

    # text to ids and back

    def encode(self, text: str, length: int | None = None) -> list[int]:
        """[CLS] text [SEP], cut to `length` tokens, both included."""
        return self.encode_batch([text], length)[0]

    def encode_batch(self, texts: list[str], length: int | None = None) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        if length is not None and length < 2:
            raise ValueError(f"Tokenizer.encode: length is {length}, expected at least 2")
        room = None if length is None else length - 2  # beside [CLS] and [SEP]
        return [[self.cls_id, *ids[:room], self.sep_id] for ids in self.encode_words(texts)]

    def encode_words(self, words: list[str]) -> list[list[int]]:
        """The pieces of each word by itself, without special tokens; [] where nothing is left."""
        return [x.ids for x in self.backend.encode_batch_fast(words, add_special_tokens=False)]

    def encode_offsets(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Of each text the ids, without special tokens, and their (start, end) in characters."""
        found = self.backend.encode_batch(texts, add_special_tokens=False)  # on all cores
        return [(encoding.ids, encoding.offsets) for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def check_vocab(self, V: int, where: str) -> None:
        """Refuse a model of another vocabulary.

        A table that was padded with rows for speed, to a multiple of 8 to 128, has this vocabulary.

        Raises:
            InputError: V differs from this tokenizer's.
        """
        if V not in (self.V, *(-(-self.V // n) * n for n in (8, 16, 32, 64, 128))):
            raise InputError(
                f"{where}: the tokenizer has {self.V:,} pieces, the model {V:,}; "
                "use the tokenizer the model was trained with"
            )


# the parts


def build(
    vocab: dict[str, int], cased: bool, chinese: bool = True, strip_accents: bool | None = None
) -> tokenizers.Tokenizer:
    """BERT's pipeline over a vocabulary. strip_accents None: where it lower-cases, as in BERT."""
    backend = tokenizers.Tokenizer(
        models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD)
    )
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese,
        strip_accents=strip_accents,
        lowercase=not cased,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([token for token in SPECIAL if token in vocab])
    return backend


def casing_of(vocab: dict[str, int]) -> bool:
    """True where a piece that text can reach has a capital letter."""
    return bool(capitals(vocab))


def capitals(vocab: dict[str, int]) -> list[str]:
    """The pieces with capital letters that are evidence of a cased vocabulary, the shortest first.

    Not those in brackets ([MASK], [unused1]); not those that no text can reach, since BERT cuts
    words at punctuation (@GENE$); and not those put into an [unused] slot of a finished vocabulary.
    """
    slots = unused_slots(vocab)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def is_evidence(piece):
        is_bracketed = len(piece) > 1 and piece[0] == "[" and piece[-1] == "]"
        if is_bracketed or piece.lower() == piece or vocab[piece] in slots:
            return False
        return len(pre_tokenizer.pre_tokenize_str(piece.removeprefix("##"))) == 1

    return sorted(filter(is_evidence, vocab), key=len)


def unused_slots(vocab: dict[str, int]) -> set[int]:
    """Ids at which an [unusedN] would be expected and another piece is.

    Between two neighbours [unused3] and [unused6] that are three ids apart lie the slots of 4 and
    5. (Where the numbers do not go with the ids, as around [UNK] to [MASK], nothing was replaced.)
    """
    found = {}  # id -> N
    for piece, i in vocab.items():
        if match := UNUSED.fullmatch(piece):
            found[i] = int(match[1])
    ids = sorted(found)
    return {
        slot
        for before, after in pairwise(ids)
        if after - before == found[after] - found[before]
        for slot in range(before + 1, after)
    }


def check_casing(where: str, lowers: bool | None, vocab: dict[str, int]) -> None:
    """Refuse what a file says of lower-casing (None: nothing) where its vocabulary contradicts.

    A few capitalised pieces that were added to a lower-case vocabulary are never reached, and
    contradict nothing.

    Raises:
        InputError: the two differ.
    """
    capital = capitals(vocab)
    if lowers is True and len(capital) > len(vocab) * FEW:
        raise InputError(
            f"{where} asks for lower-casing, but {len(capital):,} pieces of the vocabulary have "
            f"capital letters ({capital[-1]!r}) and would never be reached; set it to false"
        )
    if lowers is False and not capital:
        raise InputError(
            f"{where} asks for no lower-casing, but no piece of the vocabulary has a capital "
            "letter, so that every capitalised word would become [UNK]; set it to true"
        )


def read_vocab(file: Path) -> dict[str, int]:
    """vocab.txt, a piece a line.

    Raises:
        InputError: a line that is not UTF-8, blank, or there twice; the file is empty.
    """
    check_content(file)
    vocab = {}
    lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    if lines[-1] == b"":  # the last line is ended too
        lines.pop()
    for n, line in enumerate(lines, 1):
        try:
            piece = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            raise InputError(f"{file}: line {n} is not UTF-8; is it a vocabulary?") from None
        if not piece.strip(" \t"):  # a line of one rarer space can be a piece
            raise InputError(f"{file}: line {n} is blank; each line is one piece, numbered from 0")
        if piece in vocab:
            raise InputError(f"{file}: line {n} repeats {piece!r} of line {vocab[piece] + 1}")
        vocab[piece] = n - 1
    if not vocab:
        raise InputError(f"{file}: the file is empty")
    return vocab


def read_tokenizer_json(file: Path) -> tuple[tokenizers.Tokenizer, dict]:
    """tokenizer.json and its normaliser, as written there.

    Raises:
        InputError: damaged, or not a WordPiece of BERT's form.
    """
    spec = read_json(file)
    model, normalizer = (spec.get(key) or {} for key in ("model", "normalizer"))
    try:
        forms = (model["type"], normalizer["type"], model["unk_token"])
    except (KeyError, TypeError):
        forms = None
    if forms != ("WordPiece", "BertNormalizer", "[UNK]"):
        raise InputError(
            f"{file}: expected a WordPiece model with unk_token [UNK] and a BertNormalizer, the "
            "tokenizer of BERT and its kin; delete the file if vocab.txt is there"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing finer
        raise InputError(f"{file}: {error}; the file is damaged") from None
    state = json.loads(backend.normalizer.__getstate__())
    return backend, state


def add_tokens(backend: tokenizers.Tokenizer, path: Path, config: dict) -> None:
    """Add the tokens beside vocab.txt: added_tokens.json, tokenizer_config.json.

    Raises:
        InputError: either is of another form; ids that do not follow on those of the vocabulary.
    """
    for token, i in sorted(added_tokens(path, config).items(), key=lambda item: item[1]):
        expected = backend.token_to_id(token)
        if expected is None:
            expected = backend.get_vocab_size()
            backend.add_tokens([token])
        if i != expected:
            raise InputError(f"{path}: the added token {token!r} has id {i}, expected {expected}")


def added_tokens(path: Path, config: dict) -> dict[str, int]:
    """{token: id} of tokenizer_config.json and added_tokens.json; the second wins.

    Raises:
        InputError: the first entry that is not a token and its id.
    """
    config_file, file = path / "tokenizer_config.json", path / "added_tokens.json"
    entries = config.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict):
        raise InputError(
            f"{config_file}: added_tokens_decoder is {entries!r:.60}, expected "
            '{"103": {"content": "[MASK]"}, ...}'
        )
    found = []
    for i, entry in entries.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        n = int(i) if i.isdecimal() and len(i) < 10 else None
        found.append((f"{config_file}: added_tokens_decoder: {i!r:.60}: {entry!r:.60}", content, n))
    for token, i in (read_json(file) if file.is_file() else {}).items():
        found.append((f"{file}: {token!r:.60}: {i!r:.60}", token, i))
    for where, token, i in found:
        is_token = isinstance(token, str) and not re.search("[\ud800-\udfff]", token)
        if not (is_token and type(i) is int and i >= 0):
            raise InputError(f"{where}, expected a token of text and its id")
    return {token: i for _, token, i in found}


def alphabet_of(texts: Iterable[str], backend: tokenizers.Tokenizer, size: int) -> list[str]:
    """The `size` most frequent characters of the texts as the tokenizer sees them, sorted."""
    counts = Counter()
    for text in texts:
        counts.update(backend.normalizer.normalize_str(text))
    chars = sorted((-n, char) for char, n in counts.items() if not char.isspace())
    return sorted(char for _, char in chars[:size])


def is_apart(char: str, backend: tokenizers.Tokenizer) -> bool:
    """Whether a character is always a word of its own, such as punctuation."""
    return len(backend.pre_tokenizer.pre_tokenize_str(f"a{char}")) > 1
