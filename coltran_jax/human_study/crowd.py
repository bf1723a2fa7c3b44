"""The human test on a crowdsourcing platform: tasks of pairs by the addresses of their images, and their results."""

import csv
import dataclasses
import json
import pathlib
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coltran_jax.errors import StudyError
from coltran_jax.files import replacing
from coltran_jax.human_study.scoring import Results, results_of
from coltran_jax.human_study.study import page_template

# Columns of results, in Mechanical Turk's words and in others'.
_TASK = ("Input.task", "task")
_RATER = ("WorkerId", "PROLIFIC_PID", "participant_id", "rater")
_STATUS = ("AssignmentStatus", "status")
_REJECTED = ("rejected", "returned")
_WHOLE = ("Answer.answers", "answers")
_SIDES = ("left", "right")


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Options of an export.

    Attributes:
        count: tasks, each for one rater or more.
        pairs: that a task asks for, checks not counted.
        checks: pairs among them whose fake nobody overlooks.
        seed: of order, models, seeds and sides.
    """

    count: int
    pairs: int = 20
    checks: int = 2
    seed: int = 0


def read_study(folder: pathlib.Path) -> dict[str, Any]:
    """The description that a study's page has.

    Raises:
        StudyError: no folder of `study build`.
    """
    try:
        text = (folder / "index.html").read_text(encoding="utf-8")
        return json.loads(re.search(r"^const STUDY = (\{.*\});$", text, re.MULTILINE).group(1))
    except (OSError, AttributeError, ValueError):
        raise StudyError(f"{folder}: no study; expected the folder that study build wrote") from None


def export(folder: pathlib.Path, output: pathlib.Path, images_url: str, tasks: Tasks) -> None:
    """Writes what a platform takes: `task.html`, a template, and `tasks.csv`, its values, a line a task.

    A third file, `key.json`, says which images are fakes; it stays at home, and `read_table` needs it.

    Args:
        folder: of the study.
        output: folder for the files, made if need be.
        images_url: address of the study's folder `images`.
        tasks: how many, of what.

    Raises:
        StudyError: no study, more pairs than it has, or an address that is none.
    """
    study = read_study(folder)
    if urllib.parse.urlsplit(images_url).scheme not in ("http", "https"):
        raise StudyError(f"--images_url={images_url}: expected an address that begins with https://")
    if tasks.count < 1:
        raise StudyError(f"--tasks={tasks.count}: expected 1 or more")
    for name, wanted in (("judged", tasks.pairs), ("checks", tasks.checks)):
        if wanted > len(study[name]):
            option = "--pairs" if name == "judged" else "--checks"
            raise StudyError(f"{option}={wanted}: {folder} has {len(study[name])} such pairs")
    if not tasks.pairs:
        raise StudyError("--pairs=0: expected 1 or more")
    rng = np.random.default_rng(tasks.seed)
    order = rng.permutation(len(study["judged"]))
    offsets = rng.integers(0, 2**31, len(order))
    base = images_url.rstrip("/")
    key, lines = {}, []
    for number in range(tasks.count):
        pairs = []
        for place in range(number * tasks.pairs, (number + 1) * tasks.pairs):
            # Each image as often as any other, of each model and seed in turn.
            image = order[place % len(order)]
            choices = study["judged"][image]
            turn = (offsets[image] + place // len(order)) % len(choices)
            pairs.append({**choices[turn], "kind": "judged"})
        pairs += [
            {**study["checks"][i], "kind": "check"} for i in rng.permutation(len(study["checks"]))[: tasks.checks]
        ]
        pairs = [
            {"model": "", "seed": "", **pairs[i], "fake_side": _SIDES[rng.integers(2)]}
            for i in rng.permutation(len(pairs))
        ]
        name = f"{study['study'][:6]}-{number + 1:05}"
        key[name] = [
            {field: pair[field] for field in ("kind", "image", "model", "seed", "fake_side")} for pair in pairs
        ]
        lines.append({"task": name, **_addresses(pairs, base)})
    with replacing(output / "tasks.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    with replacing(output / "key.json") as temporary:
        values = {"study": study["study"], "min_checks": study["min_checks"], "tasks": key}
        temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
    with replacing(output / "task.html") as temporary:
        temporary.write_text(_template(tasks.pairs + tasks.checks, study["seconds"]), encoding="utf-8")


def _addresses(pairs: Sequence[Mapping[str, str]], base: str) -> dict[str, str]:
    found = {}
    for number, pair in enumerate(pairs, 1):
        other = _SIDES[1 - _SIDES.index(pair["fake_side"])]
        sides = {pair["fake_side"]: pair["fake"], other: pair["real"]}
        found |= {f"{side}_{number}": f"{base}/{sides[side]}" for side in _SIDES}
    return found


def _template(count: int, seconds: float) -> str:
    pairs = "\n".join(
        f'<li data-left="${{left_{number}}}" data-right="${{right_{number}}}">'
        f'<input type="hidden" name="picked_{number}"><input type="hidden" name="shown_{number}"></li>'
        for number in range(1, count + 1)
    )
    return page_template("task.html").replace("<!-- PAIRS -->", pairs).replace("SECONDS", f"{seconds:g}")


def read_table(path: pathlib.Path, key: pathlib.Path | None) -> tuple[list[Results], list[str]]:
    """Results that a platform gives as a table, a line an assignment.

    Args:
        path: file of comma-separated values: of the tasks of `export`, with columns `picked_1`, `picked_2` ... or, of
            the study's own page as Mechanical Turk's ExternalQuestion, with a column `answers` of JSON.
        key: `key.json` of `export`, for the former.

    Returns:
        Results, one for each rater, and the names of raters with assignments that were rejected, which are left out.

    Raises:
        StudyError: another kind of file, no key, or a task that the key has not.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"{path}: no table of results ({error})") from None
    if not lines or not (rater_column := _column(lines[0], _RATER)):
        raise StudyError(f"{path}: no table of results; expected lines with a column {_RATER[0]}")
    status, whole = _column(lines[0], _STATUS), _column(lines[0], _WHOLE)
    rejected, kept = [], []
    for line in lines:
        if status and (line[status] or "").lower() in _REJECTED:
            rejected.append(line[rater_column])
        else:
            kept.append(line)
    if whole:
        return [_whole(path, line[whole], line[rater_column]) for line in kept if line[whole]], rejected
    if key is None:
        raise StudyError(f"{path}: results of tasks; give their key.json with --key")
    return _joined(path, kept, rater_column, _read_key(key)), rejected


def _column(line: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in line), None)


def _whole(path: pathlib.Path, text: str, rater: str) -> Results:
    try:
        values = json.loads(text)
    except ValueError:
        raise StudyError(f"{path}: the answers of {rater!r} are damaged") from None
    return dataclasses.replace(results_of(path, values), rater=rater)


def _read_key(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: values[name] for name in ("study", "min_checks", "tasks")}
    except (OSError, ValueError, KeyError, TypeError):
        raise StudyError(f"{path}: no key; expected key.json that study export wrote") from None


def _joined(
    path: pathlib.Path, lines: Sequence[Mapping[str, str]], rater_column: str, key: Mapping[str, Any]
) -> list[Results]:
    """One rater's answers to all tasks together."""
    answers: dict[str, list[dict[str, Any]]] = {}
    task_column = _column(lines[0], _TASK) if lines else None
    if lines and not task_column:
        raise StudyError(f"{path}: no column {_TASK[0]}; expected results of the tasks that study export wrote")
    for number, line in enumerate(lines, 2):
        task = line[task_column]
        if task not in key["tasks"]:
            raise StudyError(f"{path}: line {number}: no task {task!r} in the key; give the key of the same export")
        own = answers.setdefault(line[rater_column], [])
        for place, pair in enumerate(key["tasks"][task], 1):
            picked = line.get(f"Answer.picked_{place}") or line.get(f"picked_{place}")
            if picked not in _SIDES:
                raise StudyError(f"{path}: line {number}: picked_{place} is {picked!r}, expected left or right")
            own.append({**pair, "picked_side": picked, "shown_ms": None, "answer_ms": None})
    values = {"study": key["study"], "min_checks": key["min_checks"]}
    return [results_of(path, {**values, "rater": rater, "answers": own}) for rater, own in answers.items()]
