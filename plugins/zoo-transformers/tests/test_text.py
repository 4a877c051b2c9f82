"""Texts and words to token ids, against transformers' own tokenisers of the same folder."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from zoo_core.cli import main
from zoo_core.errors import IntegrityError, NotFoundError, UsageError
from zoo_transformers.backbones import Transformers
from zoo_transformers.configuration import describe
from zoo_transformers.text import text_preparation

SENTENCES = (
    "the cat sat on the mat and looked at the unbelievable moon",
    "a film that is neither long nor short, but warm",
    "Anna flew from Berlin to New York",
)
TEXTS = [*SENTENCES, "", "unseen zebras?", "cat"]
WORDS = [["Anna", "flew", "unbelievably", ",", "from", "Berlin"], ["cat"], ["the", "moon", "\u200b", "long"]]


def bytes_bpe(folder: Path, *, bos: bool) -> Path:
    """GPT-2's kind of tokeniser; RoBERTa's puts special tokens around."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def pieces(folder: Path) -> Path:
    """T5's and XLM-R's kind of tokeniser: a unigram model on words that begin with a low line."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(params=["bert", "roberta", "gpt2", "t5"])
def folder(request: pytest.FixtureRequest, tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A repository with a tokeniser of each kind; the weights are left out."""
    source = tiny(request.param)
    config = json.loads((source / "config.json").read_text()) | {"vocab_size": 500}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if request.param == "bert":
        (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    elif request.param == "t5":
        pieces(tmp_path)
    else:
        bytes_bpe(tmp_path, bos=request.param == "roberta")
    stated = {"model_max_length": 12, "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    return tmp_path


def preparation(folder: Path, **arguments: Any) -> Any:
    return text_preparation(describe(folder), **({"max_length": None} | arguments))


def librarys(folder: Path, **arguments: Any) -> Any:
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder, **arguments)


def test_tokens_are_those_of_the_librarys_tokeniser(folder: Path) -> None:
    prepared = preparation(folder).prepare(TEXTS)
    expected = librarys(folder)(TEXTS, truncation=True, max_length=12)["input_ids"]
    for found, ids in zip(prepared, expected, strict=True):
        assert found["input_ids"].tolist() == ids or (not ids and len(found["input_ids"]) == 1)
        assert found["attention_mask"].tolist() == [1] * len(found["input_ids"])
    assert max(len(ids) for ids in expected) == 12


def test_only_the_first_piece_of_a_word_says_which_it_is(folder: Path) -> None:
    tokenizer = librarys(folder)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]
    if backend["type"] == "ByteLevel":  # what transformers asks users of GPT-2 and RoBERTa to set
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for found, words in zip(preparation(folder, max_length=12).prepare(WORDS), WORDS, strict=True):
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=12)
        assert found["input_ids"].tolist() == encoded["input_ids"]
        previous, firsts = None, []
        for word in encoded.word_ids():  # the way of transformers' own example for token classification
            firsts.append(-1 if word is None or word == previous else word)
            previous = word
        assert found["word_ids"].tolist() == firsts


def test_a_batch_is_padded_to_its_longest(folder: Path) -> None:
    made = preparation(folder)
    prepared = made.prepare(["cat", SENTENCES[0]])
    batch = made.collate(prepared)
    lengths = [len(example["input_ids"]) for example in prepared]
    assert batch["input_ids"].shape == (2, max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["input_ids"][0, lengths[0] :].unique().tolist() == [made.pad]
    assert made.collate(prepared[:1])["input_ids"].shape[1] == lengths[0]
    words = made.collate(made.prepare([WORDS[0], WORDS[1]]))["word_ids"]
    assert (words[1] >= 0).sum() == 1
    assert "word_ids" not in made.collate([*prepared, *made.prepare(WORDS)])


def test_a_text_without_tokens_has_one(folder: Path) -> None:
    for example in preparation(folder).prepare(["", "", "cat"]):
        assert example["attention_mask"].sum() >= 1


def test_it_is_small_in_a_worker_process_and_does_the_same_there(folder: Path) -> None:
    made = preparation(folder)
    made.prepare(TEXTS)
    sent = pickle.dumps(made)
    assert len(sent) < 8_000
    again = pickle.loads(sent)
    assert again == made
    assert again.digest == made.digest
    for one, other in zip(made.prepare(TEXTS), again.prepare(TEXTS), strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])


def test_the_digest_is_of_the_contents_and_not_of_the_place(folder: Path, tmp_path_factory: Any) -> None:
    made, elsewhere = preparation(folder), tmp_path_factory.mktemp("elsewhere")
    for path in folder.iterdir():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    assert preparation(elsewhere).digest == made.digest
    assert preparation(folder, max_length=9).digest != made.digest
    with (elsewhere / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert preparation(elsewhere).digest != made.digest


def test_padding_moves_the_features_of_real_tokens_no_more_than_rounding(tiny: Callable[[str], Path]) -> None:
    backbone: Any = Transformers(files=str(tiny("bert"))).build(tiny("bert"), "pretrained")
    made = backbone.preparation
    prepared = made.prepare(["cat", SENTENCES[0]])
    with torch.no_grad():
        alone, both = backbone(made.collate(prepared[:1])), backbone(made.collate(prepared))
    length = alone.x.shape[1]
    torch.testing.assert_close(both.x[0, :length], alone.x[0], rtol=1e-5, atol=1e-5)  # another order of sums
    torch.testing.assert_close(backbone.pool(both)[0], backbone.pool(alone)[0], rtol=1e-5, atol=1e-5)


# -- lengths ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bert(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny("bert") / name).read_bytes())
    return tmp_path


def test_the_longest_text_is_the_least_of_what_is_stated(bert: Path) -> None:
    assert preparation(bert).max_length == 40  # positions of the model
    (bert / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 30}))
    assert preparation(bert).max_length == 30
    (bert / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": False}))
    assert preparation(bert).max_length == 20
    (bert / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1e30}))
    assert preparation(bert).max_length == 20
    assert preparation(bert, max_length=10).max_length == 10
    with pytest.raises(UsageError, match=r"max_length=21; .* allows up to 20 tokens"):
        preparation(bert, max_length=21)


def test_robertas_positions_begin_after_the_paddings(tiny: Callable[[str], Path]) -> None:
    (tiny("roberta") / "tokenizer_config.json").write_text("{}")
    made = preparation(tiny("roberta"))
    assert made.max_length == 40
    inputs = made.collate(made.prepare(["cat " * 60]))
    assert inputs["input_ids"].shape[1] == 40
    model = transformers.RobertaModel.from_pretrained(tiny("roberta"))
    model(**{name: inputs[name] for name in ("input_ids", "attention_mask")})  # one more would be out of range


def test_texts_are_lower_cased_where_sentence_transformers_does(bert: Path) -> None:
    table = json.loads((bert / "tokenizer.json").read_text())
    table["normalizer"] = None
    (bert / "tokenizer.json").write_text(json.dumps(table))
    cased = preparation(bert)
    (bert / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    lower = preparation(bert)
    assert cased.digest != lower.digest
    assert lower.prepare(["CAT"])[0]["input_ids"].tolist() == cased.prepare(["cat"])[0]["input_ids"].tolist()
    assert cased.prepare(["CAT"])[0]["input_ids"].tolist() != cased.prepare(["cat"])[0]["input_ids"].tolist()


# -- files ------------------------------------------------------------------------------------------------------------


def test_an_older_format_is_read_as_the_model_types_class_reads_it(bert: Path) -> None:
    vocabulary = Tokenizer.from_file(str(bert / "tokenizer.json")).get_vocab()
    (bert / "tokenizer.json").unlink()
    (bert / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.__getitem__)))
    expected = transformers.BertTokenizer.from_pretrained(bert)(TEXTS)["input_ids"]
    assert [example["input_ids"].tolist() for example in preparation(bert).prepare(TEXTS)] == expected


def test_a_repository_does_not_choose_the_class_that_reads_its_tokeniser(bert: Path) -> None:
    (bert / "evil.py").write_text("raise SystemExit('remote code ran')")
    stated = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (bert / "tokenizer_config.json").write_text(json.dumps(stated | {"trust_remote_code": True}))
    assert preparation(bert).prepare(["cat"])[0]["input_ids"].shape == (3,)
    vocabulary = Tokenizer.from_file(str(bert / "tokenizer.json")).get_vocab()
    (bert / "tokenizer.json").unlink()
    (bert / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.__getitem__)))
    assert preparation(bert).prepare(["cat"])[0]["input_ids"].shape == (3,)


def test_a_folder_without_a_tokeniser_is_told(bert: Path) -> None:
    (bert / "tokenizer.json").unlink()
    with pytest.raises(NotFoundError, match=r"has no tokeniser; hf reads tokenizer\.json"):
        preparation(bert)


def test_a_damaged_tokeniser_is_told(bert: Path) -> None:
    (bert / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Magic"}}')
    with pytest.raises(IntegrityError, match="its tokeniser cannot be read") as caught:
        preparation(bert).prepare(["cat"])
    assert "\n" not in str(caught.value)


def test_a_tokeniser_of_another_model_is_told(bert: Path) -> None:
    config = json.loads((bert / "config.json").read_text()) | {"vocab_size": 20}
    (bert / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match=r"the tokeniser has \d+ tokens and the model 20"):
        preparation(bert).prepare(["cat"])
    with torch.device("meta"), pytest.raises(IntegrityError, match="the model 20"):  # before any weights are fetched
        Transformers(files=str(bert)).build(bert, "random")


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fitted_model_reads_text_files_line_by_line(
    tiny: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        (tmp_path / name).write_text("1\ta film that is warm\n0\tthe film is neither\n" * 3)
    new, run = tmp_path / "new.txt", tmp_path / "run"
    new.write_text(f"{SENTENCES[0]}\n\n{SENTENCES[1]}\u2028cat\r\n", encoding="utf-8")
    words = ("fit", f'hf(files="{tiny("bert")}")', "--task", f'real-sst2(files="{tmp_path}")', "--out", str(run))
    subprocess.run(  # a process that has the task, a plugin of the tests, on its path
        [sys.executable, "-m", "zoo_core.cli", *words, "--epochs", "1", "--num-rates", "1", "--device", "cpu"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "tests" / "real")},
        check=True,
    )
    capfd.readouterr()
    assert main(["predict", str(run), str(new), "--format", "jsonl", "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["item"] for row in rows] == [f"{new}:1", f"{new}:3"]
    assert all(sum(row["scores"]) == pytest.approx(1.0, abs=1e-5) for row in rows)

    new.write_bytes(b"\xff\xfe1,2")
    assert main(["predict", str(run), str(new)]) == 5
    assert "new.txt" in capfd.readouterr().out
    assert main(["predict", str(run), str(tmp_path / "none.txt")]) == 3
