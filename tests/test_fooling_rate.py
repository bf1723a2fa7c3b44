"""The human test, from images through the page in a real browser to fooling rates."""

import functools
import itertools
import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from coltran_jax.cli import study as fooling_rate
from coltran_jax.errors import StudyError
from coltran_jax.evaluation.colorized import Source
from coltran_jax.human_study.scoring import ORACLE, attentive, fooling_rates, read_results
from coltran_jax.human_study.study import pair_up


def image(seed, size=(24, 32)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture
def folders(tmp_path):
    """Five real images, and two models' colorizations: one of two seeds, one of one."""
    for i in range(5):
        for name, seed in ((f"truth/p-{i}.jpg", i), (f"a/p-{i}-1.png", 10 + i), (f"a/p-{i}-2.png", 20 + i)):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            image(seed).save(tmp_path / name)
        (tmp_path / "b").mkdir(exist_ok=True)
        image(30 + i).save(tmp_path / "b" / f"p-{i}.png")
    return tmp_path


def build(folders, *options):
    arguments = ["--truth", folders / "truth", "--colorized", f"a={folders / 'a'}", "--colorized", f"b={folders / 'b'}"]
    return fooling_rate.main(["build", *map(str, [*arguments, "--output", folders / "study", *options])])


def described(folders):
    page = (folders / "study" / "index.html").read_text()
    return json.loads(page.split("const STUDY = ")[1].split(";\n")[0])


def test_pairs_are_found_by_name(folders):
    real, fakes = pair_up(folders / "truth", [Source("a", folders / "a"), Source("b", folders / "b")])
    assert real["p-3"] == folders / "truth" / "p-3.jpg"
    assert fakes["p-3"] == {
        "a": {"1": folders / "a" / "p-3-1.png", "2": folders / "a" / "p-3-2.png"},
        "b": {"": folders / "b" / "p-3.png"},
    }


def test_the_page_holds_each_picture_once_and_tells_nothing_by_names(folders, capsys):
    assert build(folders, "--practice", 1, "--checks", 1) == 0
    assert capsys.readouterr().out.startswith("3 images to judge, 1 for practice, 1 checks: ")
    study = described(folders)
    names = [pair["image"] for kind in ("practice", "checks") for pair in study[kind]]
    names += [pairs[0]["image"] for pairs in study["judged"]]
    assert sorted(names) == [f"p-{i}" for i in range(5)]
    assert [(pair["model"], pair["seed"]) for pair in study["judged"][0]] == [("a", "1"), ("a", "2"), ("b", "")]
    shown = {path.name for path in (folders / "study" / "images").iterdir()}
    assert all(len(name) == 20 and name.endswith(".png") for name in shown)
    pair = study["judged"][0][2]
    for kind, source in (("real", f"truth/{pair['image']}.jpg"), ("fake", f"b/{pair['image']}.png")):
        np.testing.assert_array_equal(
            Image.open(folders / "study" / "images" / pair[kind]), Image.open(folders / source)
        )


def test_raters_may_judge_fewer_and_another_seed_chooses_others_for_practice(folders):
    chosen = set()
    for seed in range(4):
        assert build(folders, "--practice", 2, "--checks", 1, "--pairs", 1, "--seed", seed) == 0
        study = described(folders)
        assert (study["pairs_per_rater"], study["seed"], len(study["judged"])) == (1, seed, 2)
        chosen.add(tuple(sorted(pair["image"] for pair in study["practice"])))
        shutil.rmtree(folders / "study")
    assert len(chosen) > 1


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda root: (root / "a" / "p-2-2.png").unlink(), (), "no p-2-2.png, a colorization of"),
        (lambda root: (root / "b" / "p-2.png").unlink(), (), "no p-2.png, a colorization of"),
        (lambda root: image(0).save(root / "b" / "q.png"), (), "q.png: a colorization of no image"),
        (lambda root: image(0).save(root / "truth" / "p-1.png"), (), "two images of one name"),
        (lambda root: image(0, (9, 9)).save(root / "b" / "p-2.png"), (), "9x9, but"),
        (lambda root: image(0).convert("L").save(root / "b" / "p-2.png"), (), "a grayscale image; a pair needs two"),
        (lambda root: (root / "b" / "p-2.png").write_text("no"), (), "p-2.png: not an image"),
        (lambda root: shutil.rmtree(root / "truth"), (), "truth: no such folder"),
        (lambda root: None, ("--practice", 4, "--checks", 1), "5 images, 5 of them go to practice and checks"),
        (lambda root: (root / "study" / "x").mkdir(parents=True), (), "exists and is not empty"),
    ],
)
def test_impossible_studies_are_refused_and_nothing_is_written(folders, capsys, change, options, message):
    change(folders)
    before = sorted(folders.rglob("*"))
    assert build(folders, *(options or ("--practice", 1, "--checks", 1))) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(folders.rglob("*")) == before


def until(browser, condition):
    return WebDriverWait(browser, 30, poll_frequency=0.02).until(condition)


def begin(browser, folders, rater):
    """Opens the page as `rater`, and says which pair it shows."""
    browser.get((folders / "study" / "index.html").as_uri())
    field = browser.find_element(By.ID, "rater")
    field.clear()
    field.send_keys(rater, Keys.ENTER)
    return browser.find_element(By.ID, "count").text


def answer(browser, pick, by):
    """Waits until asked, and answers: `pick` of (left image, right image) -> "left" or "right"."""
    button = browser.find_element(By.CSS_SELECTOR, "[data-side=left]")
    until(browser, lambda _: button.is_enabled())
    shown = [browser.find_element(By.ID, side).get_attribute("src").split("/")[-1] for side in ("left", "right")]
    hidden = [browser.find_element(By.ID, side).value_of_css_property("visibility") for side in ("left", "right")]
    assert hidden == ["hidden", "hidden"]
    side = pick(*shown)
    if by == "keys":
        browser.find_element(By.TAG_NAME, "body").send_keys({"left": Keys.ARROW_LEFT, "right": Keys.ARROW_RIGHT}[side])
    else:
        browser.find_element(By.CSS_SELECTOR, f"[data-side={side}]").click()
    until(browser, lambda _: not button.is_enabled())


def test_a_rater_goes_from_practice_to_a_file_that_can_be_scored(folders, browser, capsys):
    assert build(folders, "--practice", 1, "--checks", 1, "--seconds", 0.2) == 0
    study = described(folders)
    pairs = [*study["practice"], *study["checks"], *itertools.chain(*study["judged"])]
    fake_of = {(pair["real"], pair["fake"]): pair for pair in pairs}

    def knowing(left, right):
        return "right" if (left, right) in fake_of else "left"

    begin(browser, folders, "first rater")
    assert "for 0.2 seconds" in browser.find_element(By.ID, "how-long").get_attribute("textContent")
    until(browser, lambda b: "shown" in b.find_element(By.ID, "pair").get_attribute("class"))
    answer(browser, knowing, "keys")
    until(browser, lambda b: b.find_element(By.ID, "note").text == "Right.")
    answer(browser, knowing, "buttons")
    # Closed and opened again: what was answered is kept. A busy browser needs a moment to pass it on to its next page.
    until(browser, lambda b: begin(b, folders, "first rater") == "3 of 5")
    for _ in range(3):
        answer(browser, knowing, "buttons")
    until(browser, lambda b: b.find_element(By.ID, "end").is_displayed())
    browser.find_element(By.ID, "download").click()
    found = folders / "downloads" / f"answers-{study['study']}-first_rater.json"
    until(browser, lambda _: found.exists())
    time.sleep(0.1)
    results = json.loads(found.read_text())
    assert results["complete"]
    assert [answer["kind"] for answer in results["answers"]].count("judged") == 3
    assert all(answer["shown_ms"] >= 180 for answer in results["answers"])
    assert all(answer["picked_side"] == answer["fake_side"] for answer in results["answers"])
    assert read_results(found).checks == (1, 1)
    # Another rater, who sees another order and is always fooled.
    begin(browser, folders, "second")
    for _ in range(5):
        answer(browser, lambda *sides: {"left": "right", "right": "left"}[knowing(*sides)], "keys")
    until(browser, lambda b: b.find_element(By.ID, "end").is_displayed())
    browser.find_element(By.ID, "download").click()
    other = folders / "downloads" / f"answers-{study['study']}-second.json"
    until(browser, lambda _: other.exists())
    time.sleep(0.1)
    assert fooling_rate.main(["score", str(found), str(other), "--min_checks", "0"]) == 0
    table = capsys.readouterr().out
    assert "2 raters" in table
    # The second takes the real colours for the fake in the check, too.
    assert fooling_rate.main(["score", str(found), str(other), "--json"]) == 0
    printed = capsys.readouterr()
    assert "left out: 'second', 0 of 1 checks right" in printed.err
    rates = [json.loads(line) for line in printed.out.splitlines()]
    assert {rate["percent"] for rate in rates} == {0.0}


def results_file(path, rater, fooled, study="s", checks=(True,), model="m"):
    """Answers of a rater: (image, seed) -> whether fooled."""
    answer = {"model": model, "fake_side": "left", "shown_ms": 1000, "answer_ms": 500}
    answers = [
        {**answer, "kind": "judged", "image": name, "seed": seed, "picked_side": "right" if lost else "left"}
        for (name, seed), lost in fooled.items()
    ]
    answers += [
        {**answer, "kind": "check", "image": "c", "seed": "", "picked_side": "left" if right else "right"}
        for right in checks
    ]
    path.write_text(json.dumps({"study": study, "rater": rater, "answers": answers}))
    return path


def test_rates_are_those_counted_by_hand(tmp_path):
    one = {("p", "1"): True, ("q", "1"): False, ("r", "2"): True}
    two = {("p", "1"): False, ("q", "2"): True, ("r", "2"): True}
    paths = [results_file(tmp_path / f"{i}.json", f"rater {i}", fooled) for i, fooled in enumerate((one, two))]
    rates = fooling_rates([read_results(path) for path in paths])
    # Seed 1: p fooled one of two, q none of one. Seed 2: q and r fooled all. The oracle: 1/2, 1, 1.
    found = [(rate.seed, rate.percent, rate.images, rate.answers) for rate in rates]
    assert found == [("1", 25.0, 2, 3), ("2", 100.0, 2, 3), (ORACLE, pytest.approx(250 / 3), 3, 6)]
    # Means of two draws from {0, 1/2}: 0, 1/4, 1/4, 1/2, whose standard deviation is 1/4 / sqrt(2).
    assert rates[0].error == pytest.approx(100 * 0.25 / np.sqrt(2), rel=0.03)
    assert rates[1].error == 0


def test_inattentive_raters_are_left_out(tmp_path):
    fooled = {("p", ""): True}
    good = results_file(tmp_path / "good.json", "good", fooled, checks=(True,) * 4 + (False,))
    bad = results_file(tmp_path / "bad.json", "bad", fooled, checks=(True,) * 3 + (False,) * 2)
    kept, dropped = attentive([read_results(good), read_results(bad)], 0.8)
    assert [result.rater for result in kept] == ["good"]
    assert [result.rater for result in dropped] == ["bad"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not answers to a study"),
        ("[]", "expected the file that its page downloads"),
        ('{"study": "s", "rater": "r", "answers": [{}]}', "answer 1 is damaged; ask 'r'"),
        ('{"study": "s", "rater": "r", "answers": []}', "no answer to score"),
    ],
)
def test_damaged_results_are_refused_in_one_line(tmp_path, capsys, text, message):
    (tmp_path / "answers.json").write_text(text)
    assert fooling_rate.main(["score", str(tmp_path / "answers.json")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_results_of_two_studies_or_twice_of_one_rater_are_refused(tmp_path):
    write = functools.partial(results_file, fooled={("p", ""): True})
    one = read_results(write(tmp_path / "1.json", "r"))
    with pytest.raises(StudyError, match="both of the rater 'r'"):
        attentive([one, read_results(write(tmp_path / "2.json", "r"))], 0.8)
    with pytest.raises(StudyError, match=r"of another study than .*1\.json"):
        attentive([one, read_results(write(tmp_path / "3.json", "q", study="t"))], 0.8)
