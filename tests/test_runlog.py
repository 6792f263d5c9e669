"A log of runs: nothing is lost, nothing is run twice, and a log that cannot be trusted is named."

import json
import multiprocessing
import time

import pytest

from slpo.runlog import RunLog

KEYS = [(arm, seed) for arm in "AB" for seed in range(4)]


def a_log(path):
    return RunLog(path, {"rates": [3e-5, 1e-4], "size": 4}, ("arm", "seed"))


def slow_run(arm, seed):
    time.sleep(0.05)
    return {"reward": seed / 7}


def run_all(path):
    a_log(path).run(KEYS, slow_run)


def test_processes_share_the_runs(tmp_path):
    path = tmp_path / "runs.jsonl"
    workers = [multiprocessing.Process(target=run_all, args=(path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"settings": {"rates": [3e-5, 1e-4], "size": 4}}
    assert sorted((line["arm"], line["seed"]) for line in lines[1:]) == KEYS
    assert a_log(path).missing(KEYS) == []
    assert all(a_log(path).read()[key]["reward"] == key[1] / 7 for key in KEYS)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda text: text + '{"arm":"C","seed":', ["line 10", "no JSON", "cut off", "Delete"]),
        (lambda text: text.replace('{"arm":"A","seed":1', '"arm":"A","seed":1'), ["line 3"]),
        (lambda text: text + text.splitlines()[4] + "\n", ["line 10", "line 5", "arm=A, seed=3"]),
        (lambda text: text + '{"arm":"C"}\n', ["line 10", "'seed'"]),
        (lambda text: text.replace('"size":4', '"size":5'), ["line 1", "size is 5", "4 here"]),
        (lambda text: text.split("\n", 1)[1], ["line 1", "settings"]),
        (lambda text: "7\n", ["line 1", "7"]),
    ],
)
def test_a_log_that_cannot_be_trusted_is_named_and_left_alone(tmp_path, spoil, words):
    path = tmp_path / "runs.jsonl"
    run_all(path)
    path.write_text(spoil(path.read_text()))
    spoilt = path.read_bytes()
    ran = []
    for use in (
        lambda log: log.read(),
        lambda log: log.run([*KEYS, ("D", 0)], lambda *key: ran.append(key) or {}),
        lambda log: log.add(("D", 0), {}),
    ):
        with pytest.raises(ValueError) as e:
            use(a_log(path))
        assert str(path) in str(e.value) and all(word in str(e.value) for word in words), e.value
    assert path.read_bytes() == spoilt and not ran


def test_a_run_that_is_there_is_not_added_again(tmp_path):
    log = a_log(tmp_path / "runs.jsonl")
    log.add(("A", 0), {"reward": 1.0})
    with pytest.raises(ValueError, match="arm=A, seed=0 is there already"):
        log.add(("A", 0), {"reward": 2.0})
    assert log.read()["A", 0]["reward"] == 1.0


def test_a_result_that_is_no_number_is_refused(tmp_path):
    log = a_log(tmp_path / "runs.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        log.add(("A", 0), {"reward": float("nan")})
    assert log.read() == {}
