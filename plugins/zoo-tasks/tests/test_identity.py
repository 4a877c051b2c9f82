"""The identity of each recipe is what it was: a stored result of a task stays a result of that task."""

from __future__ import annotations

import hashlib
import json

import pytest

from zoo_core.registry.registry import registry
from zoo_core.spec.parser import parse_part

IDENTITIES = {
    'csv(path="x.csv")': "b40742d55b597780",
    'csv(path="x",target=[a,b],features=[c,d],names=[a,b,c,d],header=no,separator=";")': "4594379bd343962d",
    'csv(path="x",group=c,test=[x],val=[y],seed=3,shots=2)': "63a78276bbb3dfe9",
    'tsv(path="x.tsv",text=body,strip="_",encoding=latin-1)': "5e350567306d4986",
    'jsonl(path="x.jsonl")': "11d335de1e59f7ce",
    'jsonl(path="x.jsonl",tokens=words,target=tags,split=part,pattern="{split}.jsonl")': "d71c2193b88935ad",
    'parquet(path="x.parquet",image=picture,duplicates=keep,unreadable=skip)': "3237e67ac02ebb7d",
    'conll(path="x.conll",columns=[1,4])': "279da6b1f7a74f5e",
    'npz(path="x.npz",x=a,y=b)': "a393079c1cdccd9a",
    'image-folder(path="x")': "c623edb201d6d58d",
    'image-folder(path="x",pattern="{patient}_*",group=patient,test=[a],split="s.csv",seed=4)': "835f96bfd1433b97",
    'audio-folder(path="x")': "77527a1988a8179f",
    'audio-folder(path="x",rates=mixed,duplicates=keep)': "6ce4371b4c3b025d",
    "hub-data/org/set": "12814ee780122e4a",
    'hub-data/org/set@main(config=c,target=t,audio=a,header=yes,separator="|",limit=9)': "6b7b0645a331aedc",
    'unlabelled(path="x")': "dd9619ba1fc923b1",
    'unlabelled(path="x",modality=text,column=a,seed=2,labels=drop)': "ec9dd0166017f39e",
}


def digest(text: str) -> str:
    identity = registry().bind(parse_part(text), "task").identity()
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("text", "expected"), IDENTITIES.items())
def test_a_recipe_is_identified_as_before(text: str, expected: str) -> None:
    assert digest(text) == expected


def test_an_argument_that_differs_is_another_identity() -> None:
    assert digest('csv(path="x.csv")') != digest('csv(path="x.csv",seed=1)')
