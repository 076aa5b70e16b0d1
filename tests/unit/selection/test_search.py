"""The search: seeds, the journal, pruning, Pareto fronts and budgets."""

import errno
import itertools
import os
import random
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from architectures import Letters, build
from torch import nn

from surgery_lib.baselines.base import Cost, SearchRange, TrainingData
from surgery_lib.baselines.registry import BASELINES
from surgery_lib.errors import UserError
from surgery_lib.selection.search import Trial, best_at, pareto, search

DATA = TrainingData(["a", "b"], [0, 1])
BUDGET = {"kl": 2.0, "context": 2.0}


@dataclass
class Toy:
    """Behaviour falls with strength and damage rises; the knob `bent` makes both worse."""

    name: str = "toy"
    kind: str = "hook"
    calls: list = field(default_factory=list)
    fits: int = 0
    knobs = {  # noqa: RUF012
        "strength": SearchRange(1.0, low=0.01, high=4.0, log=True),
        "bent": SearchRange("no", choices=("no", "yes")),
    }

    def fit(self, model, tokenizer, data, *, seed=0, **fixed):
        self.fits += 1
        return self

    @contextmanager
    def applied(self, model, strength, *, bent="no"):
        self.calls.append(strength)
        yield (strength, bent)

    def cost(self, **_):
        return Cost(0, 0)


def rate(changed):
    strength, bent = changed
    return 1 / (1 + strength) + 0.2 * (bent == "yes")


def harm(changed):
    strength, bent = changed
    return {"kl": strength * (1 + (bent == "yes")), "context": strength**2, "other": 0.5}


torch.manual_seed(0)
MODEL = nn.Linear(2, 2)


def run(method, **options):
    settings = {"behaviour": rate, "damage": harm, "budget": BUDGET, "trials": 12}
    return search(MODEL, None, method, DATA, **{**settings, "progress": False, **options})


def plain(trials):
    return [(t.number, dict(t.knobs), dict(t.damage), t.behaviour) for t in trials]


def test_one_seed_gives_one_search_and_another_another():
    first, again, other = run(Toy()), run(Toy()), run(Toy(), seed=1)
    assert len(first) == 12 and plain(first) == plain(again)
    assert plain(first)[1:] != plain(other)[1:]


def test_the_default_setting_comes_first():
    first = run(Toy())[0].knobs
    assert first == {"strength": pytest.approx(1.0), "bent": "no"}


@pytest.mark.parametrize("readings", [3, 20])
def test_a_killed_search_goes_on_to_the_very_same_trials(tmp_path, readings):
    whole = Toy()
    expected = plain(run(whole, journal=tmp_path / "whole"))
    # Readings of damage: to find the range, in trials, and in those that turn the other knob.
    again = sum(trial.knobs["bent"] == "yes" for trial in run(whole, journal=tmp_path / "whole"))
    assert 12 + 2 * again < len(whole.calls) < 12 + 3 * again + 14

    count = itertools.count(1)

    def killed(changed):
        if next(count) > readings:
            raise KeyboardInterrupt
        return harm(changed)

    journal = tmp_path / "journal"
    with pytest.raises(KeyboardInterrupt):
        run(Toy(), journal=journal, damage=killed)
    resumed = Toy()
    assert plain(run(resumed, journal=journal)) == expected
    # A killed ranging or trial is done again; a finished one is not.
    assert len(whole.calls) - readings <= len(resumed.calls) <= len(whole.calls)
    assert readings < 10 or len(resumed.calls) < len(whole.calls)


def test_strengths_that_do_nothing_or_ruin_get_few_trials():
    class Faint(Toy):
        knobs = {**Toy.knobs, "strength": SearchRange(1.0, low=1e-4, high=1e3, log=True)}  # noqa: RUF012

    trials = run(Faint(), trials=30)
    within = [t for t in trials if 0.1 <= t.knobs["strength"] <= 4]
    assert len(within) >= 20


def test_strength_is_ranged_anew_where_another_knob_changes_its_scale():
    class Scaled(Toy):
        """`bent` makes the same strength do a thousandth."""

        def strength(self, changed):
            return changed[0] * (0.001 if changed[1] == "yes" else 1.0)

    toy = Scaled()
    trials = run(
        toy,
        behaviour=lambda changed: 1 / (1 + toy.strength(changed)),
        damage=lambda changed: {"kl": toy.strength(changed), "context": toy.strength(changed)},
        trials=30,
    )
    bent = [t for t in trials if t.knobs["bent"] == "yes"]
    assert len(bent) > 3
    # Far beyond the knob's own limit of 4; and no more than a doubling past the budget of 2.
    assert max(t.damage["kl"] for t in bent) > 0.5
    assert all(0.01 < t.damage["kl"] <= 4 for t in bent)


def test_a_finished_search_fits_and_measures_nothing_again(tmp_path):
    first = run(Toy(), journal=tmp_path / "j")
    again = Toy()
    assert run(again, journal=tmp_path / "j") == first
    assert again.fits == 0 and again.calls == []
    assert len(run(again, journal=tmp_path / "j", trials=14)) == 14
    assert 2 <= len(again.calls) <= 8  # a trial that turns another knob ranges its strength anew


def test_a_journal_cut_in_the_middle_of_a_line_is_mended(tmp_path):
    journal = tmp_path / "j"
    whole = run(Toy(), journal=journal)
    content = journal.read_bytes()
    journal.write_bytes(content[: int(len(content) * 0.6)])
    assert plain(run(Toy(), journal=journal)) == plain(whole)


def test_one_journal_holds_many_methods_but_not_another_search(tmp_path):
    run(Toy(), journal=tmp_path / "j")
    assert len(run(Toy(name="second"), journal=tmp_path / "j", trials=3)) == 3
    with pytest.raises(UserError, match="another"):
        run(Toy(), journal=tmp_path / "j", budget={"kl": 1.0, "context": 2.0})
    with pytest.raises(UserError, match="another"):
        run(Toy(), journal=tmp_path / "j", seed=2)


def test_behaviour_is_not_measured_where_no_budget_is_met():
    measured = []

    def counted(changed):
        measured.append(changed)
        return rate(changed)

    trials = run(Toy(), behaviour=counted, budget={"kl": 0.5, "context": 0.1}, trials=20)
    over = [t for t in trials if t.damage["kl"] > 0.5 and t.damage["context"] > 0.1]
    assert over and all(t.behaviour is None for t in over)
    assert len(measured) == 20 - len(over)
    assert all(t.behaviour is not None for t in trials if t not in over)


def test_damage_that_is_no_number_is_beyond_every_budget(tmp_path):
    trials = run(
        Toy(),
        damage=lambda _: {"kl": float("nan"), "context": float("inf")},
        trials=3,
        journal=tmp_path / "j",
    )
    assert all(t.behaviour is None for t in trials)
    assert pareto(trials, "kl") == [] and best_at(trials, "kl", [1.0]) == {1.0: None}


def test_it_learns_to_leave_the_bad_choice_alone():
    trials = run(Toy(), trials=40)
    late = [t.knobs["bent"] for t in trials[20:]]
    assert late.count("no") > late.count("yes")


def scattered(count, seed):
    draw = random.Random(seed)
    return [
        Trial(
            "m",
            number,
            {"strength": 1.0},
            {"kl": draw.randint(0, 12) / 10},
            None if draw.random() < 0.2 else draw.randint(0, 12) / 10,
            0.0,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_brute_force_finds(seed):
    trials = scattered(25, seed)
    measured = [t for t in trials if t.behaviour is not None]

    def beaten(one):
        mine = (one.damage["kl"], one.behaviour)
        return any(
            (t.damage["kl"] <= mine[0] and t.behaviour <= mine[1])
            and ((t.damage["kl"], t.behaviour) != mine or t.number < one.number)
            for t in measured
        )

    expected = {t.number for t in measured if not beaten(t)}
    assert {t.number for t in pareto(trials, "kl")} == expected


@pytest.mark.parametrize("seed", range(5))
def test_the_best_at_a_budget_is_what_brute_force_finds(seed):
    trials = scattered(25, seed)
    for budget, found in best_at(trials, "kl", [-1.0, 0.3, 0.8, 2.0]).items():
        rates = [
            t.behaviour for t in trials if t.behaviour is not None and t.damage["kl"] <= budget
        ]
        assert (None if found is None else found.behaviour) == min(rates, default=None)


@pytest.mark.parametrize("seed", range(5))
def test_without_a_search_a_budget_is_spent_whatever_the_behaviour(seed):
    trials = scattered(25, seed)
    measured = [t for t in trials if t.behaviour is not None]
    for budget, found in best_at(trials, "kl", [-1.0, 0.3, 2.0], searched=False).items():
        within = [t.damage["kl"] for t in measured if t.damage["kl"] <= budget]
        assert (None if found is None else found.damage["kl"]) == max(within, default=None)


def test_what_cannot_be_searched_is_said():
    with pytest.raises(UserError, match="at least one"):
        run(Toy(), trials=0)
    with pytest.raises(UserError, match="at least one"):
        run(Toy(), budget={})
    with pytest.raises(UserError, match="speed"):
        run(Toy(), budget={"speed": 1.0})


@pytest.mark.parametrize("name", ["surgery", "caa", "iti", "sasa"])
def test_real_methods_are_searched_and_leave_the_model_as_it_was(name):
    model = build("llama")
    bad, good = ["zyxz", "zzyzx", "xyzzyx", "yzyzz"], ["abca", "bbacab", "acabb", "caab"]
    ids = torch.tensor([[1, 2, 3, 4, 5]])

    def logits(changed):
        with torch.no_grad():
            return changed(input_ids=ids).logits.log_softmax(-1)

    base = logits(model)
    trials = search(
        model,
        Letters(),
        BASELINES[name],
        TrainingData(bad + good, [1] * 4 + [0] * 4),
        behaviour=lambda m: float(logits(m)[0, -1, 25].exp()),
        damage=lambda m: {"kl": float((base.exp() * (base - logits(m))).sum(-1).mean())},
        budget={"kl": 5.0},
        trials=4,
        progress=False,
    )
    assert len(trials) == 4 and set(trials[0].knobs) == set(BASELINES[name].knobs)
    assert torch.equal(logits(model), base)


def test_a_point_keeps_every_budget_at_once():
    def trial(number, first, context, rate):
        return Trial("m", number, {}, {"first": first, "context": context}, rate, 0.0)

    trials = [trial(0, 0.5, 0.0, 0.0), trial(1, 0.0, 0.5, 0.1), trial(2, 0.1, 0.1, 0.6)]
    found = best_at(trials, ("first", "context"), [0.05, 0.2, 0.9])
    assert [one and one.number for one in found.values()] == [None, 2, 0]


@pytest.mark.parametrize("writes", [0, 5, 40])
def test_a_full_disk_is_one_line_and_the_search_goes_on_later(tmp_path, monkeypatch, writes):
    journal = tmp_path / "search.journal"
    left, real = [writes], os.fsync

    def until_full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", until_full)
    with pytest.raises(UserError, match=r"search\.journal could not be written \(No space left"):
        run(Toy(), journal=journal)
    monkeypatch.setattr(os, "fsync", real)
    assert plain(run(Toy(), journal=journal)) == plain(run(Toy()))


def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("surgery_lib.selection.search.JournalFileBackend", refused)
    with pytest.raises(UserError, match=r"Permission denied.*make it writable"):
        run(Toy(), journal=tmp_path / "search.journal")


@pytest.mark.parametrize("place", [1, None], ids=["within", "last"])
@pytest.mark.parametrize(
    "line", [b'{"op', b'{"\xff"}', b"[" * 100_000, b"null", b"{}", b'{"op_code": 99}']
)
def test_a_broken_journal_is_one_line(tmp_path, line, place):
    journal = tmp_path / "search.journal"
    run(Toy(), journal=journal, trials=1)
    lines = journal.read_bytes().splitlines()
    lines.insert(len(lines) if place is None else place, line)
    broken = b"\n".join([*lines, b""])
    journal.write_bytes(broken)
    with pytest.raises(UserError, match=r"search\.journal is damaged \(\w+\); remove it"):
        run(Toy(), journal=journal)
    assert journal.read_bytes() == broken


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(UserError, match="is a folder; name a file"):
        run(Toy(), journal=tmp_path)
