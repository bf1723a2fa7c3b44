"""The human test on crowdsourcing platforms: from tasks and their template in a real browser to fooling rates."""

import csv
import functools
import http.server
import json
import re
import threading
import urllib.parse

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from coltran_jax.cli import study as command
from coltran_jax.errors import StudyError
from coltran_jax.human_study import effects
from coltran_jax.human_study.crowd import Tasks, export, read_study, read_table
from coltran_jax.human_study.scoring import Results

KNOWING = {"left": "right", "right": "left"}


@pytest.fixture
def folder(tmp_path):
    """Eight real images, and two models' colorizations, of which one has two seeds."""
    rng = np.random.default_rng(0)
    names = ["truth/{}.png", "a/{}-1.png", "a/{}-2.png", "b/{}.png"]
    for number in range(8):
        for name in names:
            path = tmp_path / name.format(number)
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(path)
    return tmp_path


def build(folder, *options):
    sources = [f"--colorized={name}={folder / name}" for name in ("a", "b")]
    fixed = ["--practice=1", "--checks=2", "--seconds=0.1", f"--output={folder / 'study'}"]
    assert command.main(["build", f"--truth={folder / 'truth'}", *sources, *fixed, *options]) == 0
    return folder / "study"


@pytest.fixture
def server(tmp_path):
    """Serves the folder on this machine, and keeps what is sent to it; gives its address and that list."""
    received = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            received.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", received
        running.shutdown()
        thread.join()


def lines_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_tasks_hold_every_image_as_often_and_every_model_in_turn(folder):
    study = build(folder)
    export(study, folder / "out", "https://example.org/images/", Tasks(count=15, pairs=5, checks=1))
    key = json.loads((folder / "out" / "key.json").read_text())
    lines = lines_of(folder / "out" / "tasks.csv")
    assert [line["task"] for line in lines] == list(key["tasks"])
    assert list(lines[0]) == ["task", *(f"{side}_{n}" for n in range(1, 7) for side in ("left", "right"))]
    # Of eight images one is for practice and two are checks: 15 times five pairs are each image 15 times.
    judged = [pair for pairs in key["tasks"].values() for pair in pairs if pair["kind"] == "judged"]
    counts = {}
    for pair in judged:
        counts.setdefault(pair["image"], []).append((pair["model"], pair["seed"]))
    assert {len(own) for own in counts.values()} == {15}
    assert all({own.count(fake) for fake in (("a", "1"), ("a", "2"), ("b", ""))} == {5} for own in counts.values())
    for pairs in key["tasks"].values():
        assert len({pair["image"] for pair in pairs}) == 6
        assert [pair["kind"] for pair in pairs].count("check") == 1
    # Neither addresses nor template tell which is the fake.
    described = read_study(study)
    fakes = {pair["fake"] for pairs in [*described["judged"], described["checks"]] for pair in pairs}
    for line, pairs in zip(lines, key["tasks"].values(), strict=True):
        for number, pair in enumerate(pairs, 1):
            name = line[f"{pair['fake_side']}_{number}"].removeprefix("https://example.org/images/")
            assert name in fakes
            assert (study / "images" / name).exists()
    sides = [pair["fake_side"] for pair in judged]
    assert 20 < sides.count("left") < 55


def test_a_task_is_done_in_a_browser_and_scored(folder, server, browser, capsys):
    address, _ = server
    study = build(folder)
    arguments = [str(study), f"--output={folder / 'out'}", f"--images_url={address}/study/images", "--tasks=2"]
    assert command.main(["export", *arguments, "--pairs=3", "--checks=1", "--seed=5"]) == 0
    assert capsys.readouterr().out.endswith("key.json, to keep at home\n")
    key = json.loads((folder / "out" / "key.json").read_text())
    export(study, folder / "again", f"{address}/study/images", Tasks(count=2, pairs=3, checks=1, seed=5))
    assert json.loads((folder / "again" / "key.json").read_text()) == key
    line = lines_of(folder / "out" / "tasks.csv")[0]
    # What the platform does with a template.
    template = (folder / "out" / "task.html").read_text()
    page = re.sub(r"\$\{(\w+)\}", lambda match: line[match[1]], template.replace('src="https://assets', 'data-src="'))
    (folder / "page.html").write_text(f"<!doctype html>{page}")
    browser.get(f"{address}/page.html")
    send = browser.find_element(By.ID, "send")
    assert send.get_attribute("disabled") == "true"
    browser.find_element(By.ID, "go").click()
    # The first pair is judged as one who knows; all others as one who is always fooled.
    expected = []
    button = browser.find_element(By.CSS_SELECTOR, "[data-side=left]")
    for number, pair in enumerate(key["tasks"][line["task"]], 1):
        WebDriverWait(browser, 30, 0.02).until(lambda _: button.is_enabled())
        for side in ("left", "right"):
            assert browser.find_element(By.ID, side).get_attribute("src") == line[f"{side}_{number}"]
        side = pair["fake_side"] if number == 1 else KNOWING[pair["fake_side"]]
        keys = {"left": Keys.ARROW_LEFT, "right": Keys.ARROW_RIGHT}
        browser.find_element(By.TAG_NAME, "body").send_keys(keys[side])
        expected.append(side)
    WebDriverWait(browser, 30, 0.02).until(lambda _: send.get_attribute("disabled") is None)
    values = {f.get_attribute("name"): f.get_attribute("value") for f in browser.find_elements(By.TAG_NAME, "input")}
    assert [values[f"picked_{number}"] for number in range(1, 5)] == expected
    assert all(int(values[f"shown_{number}"]) >= 90 for number in range(1, 5))
    row = {"WorkerId": "W1", "AssignmentStatus": "Submitted", "Input.task": line["task"]}
    row |= {f"Answer.{name}": value for name, value in values.items()}
    results = write_table(folder / "results.csv", [row, {**row, "WorkerId": "W2", "AssignmentStatus": "Rejected"}])
    scored = ["score", str(results), f"--key={folder / 'out' / 'key.json'}", "--min_checks=0"]
    assert command.main([*scored, "--published", "--mixed_effects"]) == 0
    table = capsys.readouterr().out
    assert "published: ColTran, oracle: 62.0 % (Kumar et al., Colorization Transformer, 2021)" in table
    assert "fools an average rater with an average image" in table
    assert command.main([*scored, "--json"]) == 0
    printed = capsys.readouterr()
    assert "left out: 'W2', an assignment that was rejected" in printed.err
    assert "--min_checks=0: the study was built with 0.8" in printed.err
    rates = [json.loads(text) for text in printed.out.splitlines()]
    pairs = zip(key["tasks"][line["task"]], expected, strict=True)
    fooled = [pair["kind"] == "judged" and side != pair["fake_side"] for pair, side in pairs]
    own = [rate for rate in rates if rate["seed"] != "oracle"]
    assert sum(rate["percent"] * rate["answers"] for rate in own) == pytest.approx(100 * sum(fooled))


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def go_through(browser, folder):
    """Answers as one who knows every fake, from the first pair to the end."""
    study = read_study(folder / "study")
    pairs = [*study["practice"], *study["checks"], *(pair for own in study["judged"] for pair in own)]
    known = {(pair["real"], pair["fake"]) for pair in pairs}
    browser.find_element(By.CSS_SELECTOR, "#start button").click()
    button = browser.find_element(By.CSS_SELECTOR, "[data-side=left]")
    for number in range(8):
        WebDriverWait(browser, 30, 0.02).until(lambda _: button.is_enabled())
        shown = tuple(browser.find_element(By.ID, s).get_attribute("src").split("/")[-1] for s in ("left", "right"))
        browser.find_element(By.CSS_SELECTOR, f"[data-side={'right' if shown in known else 'left'}]").click()
        # After the last, the page may already be another.
        if number < 7:
            WebDriverWait(browser, 30, 0.02).until(lambda _: not button.is_enabled())


def test_mechanical_turk_gets_the_answers_of_the_studys_own_page(folder, server, browser, capsys):
    address, received = server
    build(folder, "--min_checks=0.9")
    page = f"{address}/study/index.html"
    browser.get(f"{page}?assignmentId=ASSIGNMENT_ID_NOT_AVAILABLE&hitId=H")
    assert browser.find_element(By.ID, "preview").is_displayed()
    assert not browser.find_element(By.CSS_SELECTOR, "#start button").is_enabled()
    to = urllib.parse.quote(address, safe="")
    browser.get(f"{page}?assignmentId=A1&hitId=H&workerId=W1&turkSubmitTo={to}")
    assert browser.find_element(By.ID, "rater").get_attribute("value") == "W1"
    go_through(browser, folder)
    WebDriverWait(browser, 30, 0.02).until(lambda _: received)
    path, body = received[0]
    form = dict(urllib.parse.parse_qsl(body))
    assert (path, form["assignmentId"]) == ("/mturk/externalSubmit", "A1")
    answers = json.loads(form["answers"])
    assert (answers["parameters"]["hitId"], answers["min_checks"]) == ("H", 0.9)
    rows = [{"WorkerId": "W1", "AssignmentStatus": "Approved", "Answer.answers": form["answers"]}]
    assert command.main(["score", str(write_table(folder / "results.csv", rows)), "--json"]) == 0
    rates = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert {rate["percent"] for rate in rates} == {0.0}


def test_prolifics_raters_are_sent_on_once_their_answers_are_there(folder, server, browser):
    address, received = server
    build(folder, "--pairs=5", f"--submit_url={address}/take", f"--completion_url={address}/done?cc=C1")
    browser.get(f"{address}/study/index.html?PROLIFIC_PID=P1&STUDY_ID=S&SESSION_ID=T")
    go_through(browser, folder)
    WebDriverWait(browser, 30, 0.02).until(lambda b: b.current_url == f"{address}/done?cc=C1")
    path, body = received[0]
    sent = json.loads(body)
    assert (path, sent["rater"], sent["complete"], sent["min_checks"]) == ("/take", "P1", True, 0.8)
    assert sent["parameters"] == {"PROLIFIC_PID": "P1", "STUDY_ID": "S", "SESSION_ID": "T"}


def test_what_cannot_be_exported_or_read_is_refused(folder, tmp_path):
    study, url = build(folder), "https://example.org"
    for args, message in [
        ((tmp_path, tmp_path, url, Tasks(1)), "no study; expected the folder that study build wrote"),
        ((study, tmp_path, "images", Tasks(1)), "--images_url=images: expected an address that begins with https://"),
        ((study, tmp_path, url, Tasks(1, pairs=9)), "--pairs=9: .* has 5 such pairs"),
        ((study, tmp_path, url, Tasks(1, pairs=2, checks=3)), "--checks=3: .* has 2 such pairs"),
        ((study, tmp_path, url, Tasks(0, pairs=2)), "--tasks=0: expected 1 or more"),
    ]:
        with pytest.raises(StudyError, match=message):
            export(*args)
    assert not (tmp_path / "tasks.csv").exists()
    export(study, tmp_path, url, Tasks(1, pairs=1, checks=0))
    key = tmp_path / "key.json"
    for row, given, message in [
        ({"a": "1"}, key, "expected lines with a column WorkerId"),
        ({"WorkerId": "W"}, key, "no column Input.task"),
        ({"WorkerId": "W", "Input.task": "t"}, None, "give their key.json with --key"),
        ({"WorkerId": "W", "Input.task": "t"}, key, "line 2: no task 't' in the key"),
        ({"WorkerId": "W", "Input.task": "t"}, study / "index.html", "no key; expected key.json"),
        ({"WorkerId": "W", "Answer.answers": "{"}, None, "the answers of 'W' are damaged"),
    ]:
        with pytest.raises(StudyError, match=message):
            read_table(write_table(tmp_path / "results.csv", [row]), given)


def test_mixed_effects_recover_rates_that_raters_and_images_hide():
    rng = np.random.default_rng(0)
    of_raters, of_images = rng.normal(0, 1, 40), rng.normal(0, 0.5, 60)
    truth = {"a": -1.0, "b": 0.5}
    results = []
    for rater, own in enumerate(of_raters):
        judged = []
        for image in rng.permutation(60)[:30]:
            # The more a rater is fooled, the more he is shown of model a: its raw rate is too high.
            model = "a" if rng.random() < 1 / (1 + np.exp(-own)) else "b"
            log_odds = truth[model] + own + of_images[image]
            judged.append((str(image), model, "", rng.random() < 1 / (1 + np.exp(-log_odds))))
        results.append(Results(None, "s", str(rater), judged, (1, 1), 0.8))
    found = effects.fit(results)
    raw = [np.mean([fooled for r in results for _, m, _, fooled in r.judged if m == name]) for name in truth]
    for rate, share, (name, log_odds) in zip(found.rates, raw, truth.items(), strict=True):
        expected = 100 / (1 + np.exp(-log_odds))
        assert (rate.model, rate.low < expected < rate.high) == (name, True)
        assert abs(rate.percent - expected) < abs(100 * share - expected)
    assert found.rater_spread == pytest.approx(1, abs=0.35)
    assert found.image_spread == pytest.approx(0.5, abs=0.3)
