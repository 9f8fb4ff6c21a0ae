"""What a search found, for people to read: its page, figures and files, from whatever its store has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from harness import chart, frames, landscape
from harness.analysis import Analysis, analyse
from harness.blocks import Blocks
from harness.conclusions import plural
from harness.errors import InputError
from harness.frames import each
from harness.launched import Launched
from harness.origin import origin
from harness.page import Page, Recipe
from harness.ranking import HERE, Ranking, by, rank
from harness.report import PLOTS, Report, publish
from harness.space import BASE
from harness.study import Study, Variant
from harness.tables import Table, interval, number
from harness.tracking import RunLog
from harness.trials import Trials

Runs = list[tuple[Launched, pd.DataFrame]]  # of another study

SHOWN = 10  # trials in the table; of several conditions at least three each


def write(name: str, launcher: str | None = None) -> Report:
    """Write the report of a search as last launched into its report run. Written twice it has the same bytes.

    Raises InputError when the store has seen no search of this name.
    """
    trials = Trials.last(name)
    launched, log = trials.launched, trials.launched.report
    final, comparison = _final(trials)
    ranking, unranked, beside = _ranking(trials, final)
    drawings, groups, left = landscape.drawings(trials)
    sentences = list(_sentences(trials, final, ranking, unranked))
    experiment = log.run.info.experiment_id
    links = {run: launched.store.page(experiment, run) for run in trials.runs.run_id.dropna()}
    cells = {row.run_id: f"{row.variant}-s{row.seed}" for row in each(trials.runs) if isinstance(row.run_id, str)}
    for other, theirs in [*comparison, *beside]:
        for row in each(theirs[theirs.run_id.notna()]):
            links[row.run_id] = launched.store.page(other.report.run.info.experiment_id, row.run_id)
            cells[row.run_id] = f"{other.study.name} {row.variant}-s{row.seed}"
    how = [row for row in origin(launched, trials.runs, trials.history) if row[0] not in ("design", "metric")]
    page = Page(
        study=trials.search.study,
        sentences=sentences,
        limits=[*_limits(trials, final), *left],
        unsettled=[],
        tables=[table for table in (_best(trials, final), *_ranked(ranking), _trials(trials)) if table.rows],
        drawings=drawings,
        origin=[*_search(trials, final), *how],
        copies="",
        chart=chart.shared(experiment, f"{name}-{log.run.data.tags.get('edition', '')}"),
        links=links,
        cells=cells,
        again=launched.again("search"),
        recipes=list(_recipes(trials)),
        groups=groups,
    )
    told = trials.table.drop(columns="best").to_dict("records")
    table = pd.DataFrame([{**row, **trials.settings[row["variant"]]} for row in told])
    files = {
        "report.html": page.html().encode(),
        "report.md": page.markdown().encode(),
        "trials.csv": table.to_csv(index=False).encode(),
        **{f"{PLOTS}/{drawing.name}.{kind}": getattr(drawing, kind) for drawing in page.shown for kind in ("png", "svg")},
    }
    if (study := _settled(trials)) is not None:
        files["best.toml"] = study.toml_text().encode()
    publish(log, files)
    said = "\n".join(f"- {sentence}" for sentence in sentences)
    question = trials.search.study.question
    log.tags({"mlflow.note.content": f"**{question}**\n\n{said}\n\nAll of it: `report.html` among the artifacts."})
    if launcher:
        launched.store.update(launcher, name=f"report-{name}")
        RunLog.of(launched.store, launcher).tags({"mlflow.note.content": f"The report: [{name}]({log.page})"})
    return Report(trials.search.study, table, sentences, "", True, files, log.place("report.html"), log.page)


def _settled(trials: Trials) -> Study | None:
    """The comparison that the best settings so far ask for."""
    best = {name: trials.settings[trial.variant] for name, trial in trials.best.items()}
    return trials.search.final(best) if best else None


def _final(trials: Trials) -> tuple[Analysis | None, Runs]:
    """The comparison on fresh seeds and its runs, where the store has it of these very settings."""
    study = _settled(trials)
    if study is None:
        return None, []
    try:
        launched = Launched.last(study.name)
    except InputError:
        return None, []
    if launched.study.json_text() != study.json_text():
        return None, []
    runs, history = frames.runs(launched), frames.history(launched)
    return analyse(launched.study, runs, history, looks=launched.looks, seen=launched.seen), [(launched, runs)]


def _ranking(trials: Trials, final: Analysis | None) -> tuple[Ranking | None, str, Runs]:
    """The tuned conditions beside a study of fixed settings, and its runs; or why there is none, where one was asked for."""
    beside = trials.search.settings.beside
    if beside is None:
        return None, "", []
    try:
        launched = Launched.last(beside)
    except InputError:
        return None, f"The store has no study {beside} to rank tuned conditions beside; harness study {beside} trains it.", []
    if final is None:
        return None, f"The ranking beside {beside} waits for the comparison on fresh seeds.", []
    runs = frames.runs(launched)
    fixed = Blocks.of(by(launched.study, final.study.metric, final.study.matters), runs)
    return rank(trials.search, fixed, launched.looks, Blocks.of(final.study, final.runs)), "", [(launched, runs)]


# sentences


def _sentences(trials: Trials, final: Analysis | None, ranking: Ranking | None, unranked: str) -> Iterator[str]:
    """The comparison first, then what was found on validation, then ranks, then warnings."""
    if final is not None and final.contrasts.empty and final.study.reference == BASE:
        yield "No setting did better on validation than the base itself: there is nothing to compare it with."
    elif final is not None:
        seeds = plural(len(final.study.seeds), "fresh seed")
        yield f"On {seeds} and the test set, the best settings trained anew: {final.sentences[0]}"
        yield from final.sentences[1:]
    elif trials.best:
        yield "There is no comparison of these best settings on fresh seeds yet: what follows is of validation alone."
    else:
        yield "No trial came to its end, so there is no best setting."
    unit = " nats" * (trials.search.direction == "minimize")
    for row in trials.search.study.rows:
        if (best := trials.best.get(row.name)) is None:
            continue
        base, of = trials.base(row), len(trials.of(row))
        name = f"of {row.name} " if trials.search.study.factors else ""
        beside = "the base is not in the space" if base is None else (
            "the base itself" if base.variant == best.variant else
            f"the base has {number(base.value)}{unit}" if base.state == "complete" else f"the base was {base.state}"
        )  # fmt: skip
        setting = _setting(trials, best.variant)
        yield f"Best {name}on validation, of {plural(of, 'trial')}: {setting}, {number(best.value)}{unit} ({beside})."
    if ranking is not None:
        yield ranking.sentence
    if unranked:
        yield unranked
    for name, best in trials.best.items():
        for line in trials.search.edges(trials.settings[best.variant]):
            yield f"{f'{name}: ' if trials.search.study.factors else ''}{line}: the space may be too small."


def _setting(trials: Trials, trial: str) -> str:
    return ", ".join(
        f"{name}={number(value) if isinstance(value, float) else value}" for name, value in trials.settings[trial].items()
    )


def _limits(trials: Trials, final: Analysis | None) -> Iterator[str]:
    """What these data cannot say."""
    search, states = trials.search, trials.table.state.value_counts().to_dict()
    most = max(len(trials.of(row)) for row in search.study.rows)
    yield (
        f"A best validation value is the luckiest of up to {plural(most, 'trial')}, and so too good; the more trials, the "
        "more. What a setting is worth, fresh seeds and the test set say."
    )
    seeds = len(search.study.seeds)
    yield f"Each trial has {plural(seeds, 'seed')}: settings closer than seeds differ are not told apart."
    yield "The best of those tried is not the best there is: another seed of the sampler or more trials may find another."
    if search.study.factors:
        costs = [float(trials.of(row).seconds.sum()) for row in search.study.rows]
        yield f"Conditions had equal budgets of trials, not of time: {number(min(costs))} to {number(max(costs))} core-seconds."
    if states.get("pruned"):
        yield f"{plural(states['pruned'], 'trial')} were given up by {search.settings.pruner}; some might have come back."
    for state in ("diverged", "refused", "failed", "asked"):
        if count := states.get(state):
            whys = sorted({str(why) for why in trials.table.why[trials.table.state == state] if why})
            yield f"{plural(count, 'trial')} {state}, without a value{f': {whys[0]}' if whys else ''}."
    if final is not None:
        yield from final.limits


# tables and recipes


def _best(trials: Trials, final: Analysis | None) -> Table:
    variants = {name: row for row in each(final.variants) for name in (row.variant, *row.copies)} if final else {}
    contrasts = {row.variant: row.verdict for row in each(final.contrasts)} if final else {}
    rows, runs = [], []
    for row in trials.search.study.rows:
        if (best := trials.best.get(row.name)) is None:
            continue
        base, tested = trials.base(row), variants.get(row.name)
        itself = "compared with" if tested is None or tested.variant == row.name else f"is {tested.variant}"
        verdict = "" if tested is None else contrasts.get(tested.variant, itself)
        numbers = ["", "", ""] if tested is None else [str(tested.n), number(tested.mean), interval(tested.low, tested.high)]
        value = "" if base is None else number(base.value) or base.state
        rows.append(
            [row.name, verdict, *numbers, number(best.value), value, str(len(trials.of(row))), _setting(trials, best.variant)]
        )
        runs.append((*(tested.run_ids if tested is not None else ()), *trials.run_ids(best.variant)))
    if BASE in variants:
        base = variants[BASE]
        rows.append([BASE, "compared with", str(base.n), number(base.mean), interval(base.low, base.high), "", "", "", ""])
        runs.append(base.run_ids)
    tested = f"Over n fresh seeds the mean {final.study.metric} and its 95% t interval; " if final else ""
    seeds = plural(len(trials.search.study.seeds), "seed")
    note = f"{tested}validation: {trials.search.study.metric}, mean over {seeds} of the trial."
    heads = ("condition", "verdict", "n", "mean", "95% interval", "validation", "of the base", "trials", "setting")
    return Table("Best settings", note[0].upper() + note[1:], heads, rows, runs)


def _ranked(ranking: Ranking | None) -> Iterator[Table]:
    if ranking is None:
        return
    rows, runs = [], []
    for _, row in ranking.table.iterrows():
        cells, ids = [str(row["condition", ""])], list[str]()
        for side, reference in zip(HERE, ranking.references, strict=True):
            verdict = row[side, "verdict"] or ("compared with" if row["condition", ""] == reference else "")
            place, n, mean, low, high = (row[side, name] for name in ("place", "n", "mean", "low", "high"))
            cells += [str(place), str(n), number(float(mean)), interval(low, high), verdict]
            ids += row[side, "run_ids"]
        rows.append(cells)
        runs.append(ids)
    fixed, tuned = ranking.references
    note = (
        f"Place by mean, n seeds, mean with its 95% t interval, and the verdict of each study: fixed settings against {fixed}, "
        f"tuned ones against {tuned}. Places by themselves claim nothing. {ranking.note}"
    )
    heads = ("condition", *(head for side in HERE for head in (side, "n", "mean", "95% interval", f"verdict, {side}")))
    yield Table("Fixed settings beside tuned ones", note.strip(), heads, rows, runs)


def _trials(trials: Trials) -> Table:
    rows, runs, names = [], [], [name for name, _ in trials.search.order]
    each_of = max(3, SHOWN // len(trials.search.study.rows))
    for row in trials.search.study.rows:
        for trial in each(trials.ranked(row).head(each_of)):
            setting = trials.settings[trial.variant]
            values = [
                number(setting[name]) if isinstance(setting.get(name), float) else str(setting.get(name, "")) for name in names
            ]
            rows.append([trial.variant, trial.state, number(trial.value), number(trial.seconds), *values])
            runs.append(trials.run_ids(trial.variant))
    of = " of each condition" if trials.search.study.factors else ""
    whole = f"all {len(trials.table)} are in trials.csv and study.json"
    note = f"The best {each_of}{of}; {whole}. Seconds: of training steps, all its runs."
    return Table("Trials", note, ("trial", "state", "validation", "seconds", *names), rows, runs)


def _recipes(trials: Trials) -> Iterator[Recipe]:
    rows: Mapping[str, Variant] = {row.name: row for row in trials.search.study.rows}
    for name, best in trials.best.items():
        command = trials.search.command(rows[name], trials.settings[best.variant])
        yield Recipe(f"Train the best setting{f' of {name}' if trials.search.study.factors else ''} once", command)
    if (study := _settled(trials)) is not None:
        on = ", ".join(map(str, study.seeds))
        yield Recipe(f"The comparison as a file: harness study best.toml, on seeds {on}", study.toml_text(), folded=True)


def _search(trials: Trials, final: Analysis | None) -> Iterator[tuple[str, str]]:
    search: Any = trials.search
    settings, conditions = search.settings, len(search.study.rows)
    budget = f"{settings.seconds:g} s of training" if settings.seconds else plural(search.budget, "trial")
    each_ = f" for each of {conditions} conditions" if conditions > 1 else ""
    counts = ", ".join(f"{count} {state}" for state, count in trials.table.state.value_counts().items())
    yield "search", f"{budget}{each_}, sampler {settings.sampler} (seed {settings.seed}), pruner {settings.pruner}: {counts}"
    yield (
        "seeds",
        f"of trials {', '.join(map(str, search.study.seeds))}; of the comparison {', '.join(map(str, settings.final_seeds))}",
    )
    yield "metric", f"{search.study.metric}; smallest difference that matters: {search.study.matters or 'not declared'}"
    if final is not None:
        yield (
            "comparison",
            f"study {final.study.name}: its own report has figures and statistics (harness report {final.study.name})",
        )
