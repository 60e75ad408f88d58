"""Names of models where a directory is meant."""

import pytest

from minibio.model.hub import check_directory, how_to_fetch
from minibio.run.errors import InputError


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("dmis-lab/biobert-base-cased-v1.2", "fetch biobert fetches it into downloads/biobert"),
        ("mobilebert-uncased", "data.fetch starts fetches it into downloads/starts"),
        ("nlpie/tiny-biobert", "hf download nlpie/tiny-biobert --local-dir tiny-biobert"),
        ("BERT-large", "hf download BERT-large --local-dir BERT-large"),
        ("runs/mobile", None), ("tiny", None), ("/abs/bert", None), ("../bert-base", None),
        ("a/b/bert", None), ("", None),
    ],
)  # fmt: skip
def test_commands(tmp_path, monkeypatch, name, end):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    said = how_to_fetch(name)
    assert said == "" if end is None else said.startswith("; ") and said.endswith(end)


def test_a_directory_that_is_there(tmp_path):
    check_directory("--model", tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="--model .*/nothing is not a directory$"):
        check_directory("--model", tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path)
    for place in ("link", "nothing/.."):
        with pytest.raises(InputError, match=f"--out .*/{place} is the directory of --data; name"):
            check_directory("--data", tmp_path, tmp_path / place)
