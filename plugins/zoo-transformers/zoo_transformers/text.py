"""Sentences, or lists of words, by the repository's own tokeniser to token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

from zoo_core.errors import IntegrityError, NotFoundError, UsageError
from zoo_transformers.configuration import Described, read_json
from zoo_transformers.families import SHORTEST

__all__ = ["NO_WORD", "TextPreparation", "longest_text", "text_preparation"]

NO_WORD = -1
UNLIMITED = 10**6  # a tokeniser's model_max_length above it is a placeholder
TYPICAL = 512  # tokens, where neither the model nor its tokeniser has a limit
TOKENISER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model"),
)


@dataclass(frozen=True, kw_only=True)
class TextPreparation:
    """str, or a list of words -> `input_ids`, `attention_mask` int64 [T], cut to `max_length`, padded by the batch.

    Of words also `word_ids` int64 [T]: which word's first piece stands here, -1 for other pieces, special tokens and
    padding; a word that was cut off, or that the tokeniser drops, has no place.
    files: holds the tokeniser; read again in each process, so that only its path is sent there. digest: of the
    tokeniser's files and of what stands here. pad: id that fills up a batch. blank: id of a text without any token.
    lower: whether a text is lower-cased first.
    """

    files: Path
    config: PreTrainedConfig = field(repr=False)
    max_length: int
    pad: int
    blank: int
    lower: bool
    digest: str
    _loaded: list[Tokenizer] = field(default_factory=list, repr=False, compare=False)

    @property
    def random(self) -> bool:
        return False

    @property
    def tokenizer(self) -> Tokenizer:
        """Read from the files at its first use in a process.

        Raises IntegrityError when it cannot be read, or knows more tokens than the model.
        """
        if not self._loaded:
            tokenizer = _tokenizer(self.files, self.config, self.max_length)
            size, own = tokenizer.get_vocab_size(), self.config.vocab_size
            if size > own:
                raise IntegrityError(f"{self.files}: the tokeniser has {size} tokens and the model {own}")
            self._loaded.append(tokenizer)
        return self._loaded[0]

    def read(self) -> None:
        """Reads the tokeniser now; else it waits for its first use."""
        assert self.tokenizer is not None

    def __getstate__(self) -> dict[str, Any]:
        """Without the tokeniser, which is some megabytes."""
        return self.__dict__ | {"_loaded": []}

    def prepare(self, examples: Sequence[str | Sequence[str]]) -> list[Mapping[str, Tensor]]:
        """Each kind, texts and lists of words, is tokenised in one batch."""
        if isinstance(examples, str):
            raise UsageError("prepare takes a list of texts, found one text; write [text]")
        for example in examples:
            if not isinstance(example, str | list):
                raise UsageError(f"a text is a str, or a list of words, found {type(example).__name__} {example!r:.60}")
        prepared: list[Mapping[str, Tensor]] = [{} for _ in examples]
        for words in (False, True):
            places = [place for place, example in enumerate(examples) if _is_words(example) == words]
            texts = [self._words(examples[place]) if words else self._normalised(examples[place]) for place in places]
            for place, encoding in zip(places, self.tokenizer.encode_batch(texts, is_pretokenized=words), strict=True):
                prepared[place] = self._tensors(encoding, words)
        return prepared

    def collate(self, prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Padded on the right to the longest; without `word_ids` where not all are lists of words."""
        fill = {"input_ids": self.pad, "attention_mask": 0, "word_ids": NO_WORD}
        return {
            name: torch.nn.utils.rnn.pad_sequence(
                [example[name] for example in prepared], batch_first=True, padding_value=fill[name]
            )
            for name in fill
            if all(name in example for example in prepared)
        }

    def normalise(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(inputs)

    def dummy(self, batch_size: int) -> dict[str, Tensor]:
        ids = torch.full((batch_size, SHORTEST), self.blank)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _normalised(self, example: Any) -> str:
        text: str = example.lower() if self.lower else example
        return text

    def _words(self, example: Sequence[str]) -> list[str]:
        space = " " if self._splits_at_space() else ""
        return [space + self._normalised(word) for word in example]

    def _splits_at_space(self) -> bool:
        """Whether this tokeniser writes the space before a word into its first piece, and does not add one itself."""
        state = self.tokenizer.pre_tokenizer and json.loads(self.tokenizer.pre_tokenizer.__getstate__())
        steps = state.get("pretokenizers", [state]) if state else []
        return any(step["type"] == "ByteLevel" and not step["add_prefix_space"] for step in steps)

    def _tensors(self, encoding: Any, words: bool) -> dict[str, Tensor]:
        ids = list(encoding.ids) or [self.blank]  # at least one token is real
        found = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.int64)}
        if words:
            given = encoding.word_ids if encoding.ids else [None]
            firsts = [
                NO_WORD if word is None or (place and given[place - 1] == word) else word
                for place, word in enumerate(given)
            ]
            found["word_ids"] = torch.tensor(firsts)
        return found


def _is_words(example: Any) -> bool:
    return isinstance(example, list | tuple)


def text_preparation(described: Described, *, max_length: int | None) -> TextPreparation:
    """The tokeniser of a repository's folder.

    max_length: None for the most that the repository allows. Raises UsageError where it is more than that.
    """
    files, config = described.path.parent, described.config
    limit = longest_text(files, config)
    if max_length is not None and max_length > limit:
        raise UsageError(f"hf: max_length={max_length}; {files} allows up to {limit} tokens")
    length = limit if max_length is None else max_length
    stated = files / "sentence_bert_config.json"
    lower = stated.is_file() and read_json(stated).get("do_lower_case") is True
    table = config.to_dict()  # not every configuration declares them
    pad = _first_id(table.get("pad_token_id"), 0)
    blank = _first_id(table.get("eos_token_id"), table.get("bos_token_id"), pad)
    digest = hashlib.sha256(repr(("TextPreparation", length, pad, blank, lower)).encode())
    held = [files / name for name in TOKENISER_FILES if (files / name).is_file()]
    if not held:
        raise NotFoundError(f"{files} has no tokeniser; hf reads {', '.join(TOKENISER_FILES)}")
    for path in held:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return TextPreparation(
        files=files,
        config=config,
        max_length=length,
        pad=pad,
        blank=blank,
        lower=lower,
        digest=digest.hexdigest()[:16],
    )


def longest_text(files: Path, config: PreTrainedConfig) -> int:
    """The most tokens of a text: the least of what its model, its tokeniser and sentence-transformers' file say."""
    limits = [_positions(config)]
    for name, key in (("tokenizer_config.json", "model_max_length"), ("sentence_bert_config.json", "max_seq_length")):
        stated = read_json(files / name).get(key) if (files / name).is_file() else None
        if isinstance(stated, int | float) and SHORTEST <= stated < UNLIMITED:
            limits.append(int(stated))
    return min([limit for limit in limits if limit is not None], default=TYPICAL)


def _positions(config: PreTrainedConfig) -> int | None:
    """Positions that a configuration has for tokens; RoBERTa's and MPNet's kind starts counting after the padding's."""
    table = config.to_dict()
    found = table.get("max_position_embeddings", table.get("n_positions"))
    if config.model_type == "t5" or not isinstance(found, int):  # T5's positions are relative
        return None
    return found - (table.get("pad_token_id") or 0) - 1 if config.model_type in OFFSET else found


OFFSET = frozenset({"roberta", "camembert", "xlm-roberta", "mpnet"})


def _tokenizer(files: Path, config: PreTrainedConfig, max_length: int) -> Tokenizer:
    """tokenizer.json as it is; where there is only an older format, as the model type's own class reads it.

    The class that tokenizer_config.json names is not asked: a repository does not choose what code reads it.
    """
    path = files / "tokenizer.json"
    try:
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            kind: Any = TOKENIZER_MAPPING[type(config)]
            tokenizer = kind.from_pretrained(files, local_files_only=True).backend_tokenizer
    except Exception as error:  # the library raises bare exceptions for damaged files
        raise IntegrityError(f"{files}: its tokeniser cannot be read: {str(error).splitlines()[0]:.200}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _first_id(*candidates: Any) -> int:
    """The first that is a token id, or holds some."""
    for candidate in candidates:
        first = candidate[0] if isinstance(candidate, list) and candidate else candidate
        if isinstance(first, int) and first >= 0:
            return first
    return 0
