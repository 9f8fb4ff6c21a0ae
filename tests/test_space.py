"""A search as a value: what it refuses, what it asks for, and what it makes of the best setting."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness.config import RunConfig
from harness.errors import InputError
from harness.space import Search
from harness.study import Study

SPACE: dict[str, Any] = {"lr": {"low": 1e-3, "high": 1.0, "log": True}}


def asked(search: Mapping[str, Any] = {}, space: dict[str, Any] = SPACE, **study: Any) -> Search:
    tables = {"name": "x", "question": "Which?", "seeds": [0, 1], "base": {"validation": 0.2}, **study}
    return Search.of(search={"trials": 4, "final_seeds": [9], **search}, space=space, **tables)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"space": {"lr": {"low": 1.0, "high": 0.1}}}, ["space.lr", "low=1.0", "high=0.1", "low below high"]),
        ({"space": {"lr": {"low": 0.0, "high": 0.1, "log": True}}}, ["low=0.0", "above 0, for log"]),
        ({"space": {"lr": {"low": 0.0, "high": 0.1}}}, ["space.lr", "lr=0.0", "above 0"]),
        ({"space": {"dropout": {"low": 0.0, "high": 1.0}}}, ["dropout=1.0"]),
        ({"space": {"lrr": {"low": 0.1, "high": 1.0}}}, ["space='lrr'", "nearest: lr"]),
        ({"space": {"seed": {"choices": [1]}}}, ["space='seed'"]),
        ({"space": {"act": {"choices": []}}}, ["choices=[]", "at least one"]),
        ({"space": {"act": {"choices": ["tanhh"]}}}, ["act='tanhh'", "nearest: tanh"]),
        ({"space": {"act": {"low": 0, "high": 1}}}, ["choices"]),
        ({"space": {"lr": {"low": 0.1, "high": 1.0, "setp": 0.1}}}, ["key='setp'", "nearest: step"]),
        ({"space": {"lr": {"low": 0.1, "high": 1.0, "step": 0.4}}}, ["step=0.4", "divides"]),
        ({"space": {"lr": {"low": 1.0, "high": 2.0, "step": 9e-5}}}, ["step=9e-05", "divides"]),
        ({"space": {"lr": {"low": 1.0, "high": 2.0, "step": 8e-5}}}, ["step=8e-05", "10,000"]),
        ({"space": {"hidden_dim": {"low": 1.5, "high": 8}}}, ["whole numbers"]),
        ({"space": {}}, ["no [space.PARAMETER]"]),
        ({"space": {**SPACE, "dropout": {"low": 0.0, "high": 0.5, "when": {"lr": [1]}}}}, ["when='lr'"]),
        ({"search": {"trials": 0}}, ["trials=0", "from 1"]),
        ({"search": {"seconds": 0}}, ["seconds=0", "above 0"]),
        ({"search": {"direction": "up"}}, ["direction='up'", "minimize, maximize"]),
        ({"search": {"direction": "maximize"}}, ["direction='maximize'", "minimize"]),
        ({"search": {"sampler": "tpee"}}, ["sampler='tpee'", "nearest: tpe"]),
        ({"search": {"sampler": "grid"}}, ["space.lr", "grid takes no range without a step"]),
        ({"search": {"pruner": "wilcoxon"}}, ["needs 4 seeds", "0.25"]),
        ({"search": {"final_seeds": [1, 9]}}, ["final_seeds=[1, 9]", "none of them among seeds"]),
        ({"search": {"beside": "matrix"}}, ["beside='matrix'", "[factors]"]),
        ({"search": {"beside": "x"}, "factors": {"act": ["tanh"]}}, ["beside='x'", "another study"]),
        ({"search": {"beside": "../x"}, "factors": {"act": ["tanh"]}}, ["beside='../x'", "small letters"]),
        ({"metric": "final/test_loss"}, ["final/test_loss", "chooses on validation"]),
        ({"base": {}}, ["validation above 0"]),
        ({"factors": {"lr": [0.1, 1.0]}}, ["lr is a factor"]),
        ({"design": "factorial"}, ["a search has no design"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_space_that_could_not_be_searched_is_refused_in_one_line(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        asked(**given)
    assert "\n" not in (line := str(caught.value))
    assert all(word in line for word in words), line


def test_stepped_range_has_all_its_levels_and_no_more_of_them_than_can_be_listed() -> None:
    search = asked(space={"lr": {"low": 0.1, "high": 0.7, "step": 0.2}, "hidden_dim": {"low": 8, "high": 10, "step": 1}})
    assert search.space["lr"].levels == (0.1, 0.3, 0.5, 0.7), "as they are written, not as floats add up"
    assert search.space["hidden_dim"].levels == (8, 9, 10)
    assert search.space["lr"].holds(0.3)
    assert not search.space["lr"].holds(0.4)
    most = asked(space={"lr": {"low": 1.0, "high": 2.0, "step": 1e-4}}).space["lr"].levels
    assert most is not None
    assert len(most) == 10_001


def test_base_is_the_first_setting_where_the_space_holds_it() -> None:
    search = asked()
    assert search.start(search.study.rows[0]) == {"lr": 0.01}
    search = asked(base={"validation": 0.2, "lr": 2.0})
    assert search.start(search.study.rows[0]) is None


def test_study_that_it_is_ranked_beside_moves_no_trial() -> None:
    factors = {"optimizer": ["sgd", "adam"]}
    assert asked({"beside": "matrix"}, factors=factors).digest == asked(factors=factors).digest


def test_condition_that_is_not_met_leaves_the_base() -> None:
    when = {"low": 0.0, "high": 0.1, "when": {"optimizer": ["adam"]}}
    search = asked(space={**SPACE, "optimizer": {"choices": ["sgd", "adam"]}, "weight_decay": when})
    row = search.study.rows[0]
    applies = [search.applies(search.space["weight_decay"], row, {"optimizer": name}) for name in ("sgd", "adam")]
    assert applies == [False, True]


def test_best_at_an_end_is_told_where_there_is_more_beyond_it() -> None:
    search = asked(space={**SPACE, "dropout": {"low": 0.0, "high": 0.5}})
    assert search.edges({"lr": 0.03, "dropout": 0.0}) == []
    assert [line.split()[0] for line in search.edges({"lr": 0.999, "dropout": 0.5})] == ["lr=0.999", "dropout=0.5"]


def test_command_of_a_best_setting_names_all_that_is_not_a_default() -> None:
    base = {"validation": 0.2, "epochs": 3, "dataset": "mnist_5k", "dropout": 0.1}
    search = asked(base=base, factors={"optimizer": ["adam"]})
    (row,), setting = search.study.rows, {"lr": 0.12345678901234567}
    words = shlex.split(search.command(row, setting))
    given = dict(word.split("=") for option, word in pairwise(words) if option == "-P")
    assert RunConfig(**given) == row.config.replace(**setting, seed=9)
    assert set(given) == {*base, "optimizer", "lr", "seed"}


def test_final_study_is_a_file_with_fresh_seeds_and_test_data() -> None:
    final = asked(factors={"optimizer": ["sgd", "adam"]}).final({"optimizer=adam": {"lr": 0.1}, "optimizer=sgd": {"lr": 1e-05}})
    assert (final.seeds, final.metric) == ((9,), "final/test_loss")
    assert [row.config.lr for row in final.rows] == [1e-05, 0.1]
    assert Study.parse(final.toml_text(), Path("best.toml")) == final
