"""The LLM judge and `slpo_eval`, against servers that answer, fail, stall, truncate and lie, and
against `transformers serve`."""

import contextlib
import email.utils
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

import pytest

from slpo.cli_eval import eval_main, parse_eval
from slpo.judge import Judge, JudgeError, ask_judge, judge_cost, judge_questions, judge_win_rate

KEY = "sk-thisIsTheKey/+abc123"
BIAS, TIES, AGREE = "share_of_a", "ties", "agreement"


def answers_of(question):
    return [
        re.search(rf"<candidate_{x}>\n(.*?)\n</candidate_{x}>", question, re.S)[1] for x in "ab"
    ]


def longer(question):
    a, b = map(len, answers_of(question))
    return f"They differ in length.\nVerdict: {'A' if a > b else 'B' if b > a else 'tie'}"


def completion(content):
    return {
        "choices": [
            {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
    }


class FakeServer(ThreadingHTTPServer):
    """Speaks `/v1/chat/completions`; `says(question, times asked before)` returns the content,
    (status, body, headers) with body as bytes, or does what it likes with the handler."""

    daemon_threads, request_queue_size = True, 64
    # HTTPServer's looks up the name of the host, which takes a second without a network
    server_bind = TCPServer.server_bind

    def __init__(self, says):
        self.says, self.seen, self.lock = says, [], threading.Lock()
        super().__init__(("127.0.0.1", 0), self.Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def questions(self):
        return [q for _, q, _ in self.seen]

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][0]["content"]
            with self.server.lock:
                before = self.server.questions.count(question)
                headers = {name.title(): value for name, value in self.headers.items()}
                self.server.seen.append((time.monotonic(), question, headers))
            assert (
                self.path == "/v1/chat/completions"
                and body["model"] == "fake"
                and body["temperature"] == 0
            )
            says = (
                self.server.says(question, before)
                if self.server.says.__code__.co_argcount == 2
                else self.server.says(self, question, before)
            )
            if says is None:
                return
            status, raw, headers = (
                (200, json.dumps(completion(says)).encode(), {}) if isinstance(says, str) else says
            )
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(raw)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(raw)

        do_GET = do_POST


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


N = 12
PROMPTS = [f"\n\nHuman: Question {i}?\n\nAssistant:" for i in range(N)]
OURS, THEIRS = (
    [f" Answer {i:02d}" + "!" * (i % 4) for i in range(N)],
    [f" Retort {i:02d}!" for i in range(N)],
)  # shorter, tie, longer, longer
QUICK = dict(desc=None)


def win_rate(server, folder, n=N, timeout=30.0, **how):
    return judge_win_rate(
        Judge(server.url, "fake", timeout=timeout),
        PROMPTS[:n],
        OURS[:n],
        THEIRS[:n],
        folder / "verdicts.jsonl",
        **{**QUICK, **how},
    )


# -- what is computed


def test_win_rate_of_a_judge_whose_verdicts_are_known(tmp_path, serve):
    server = serve(lambda question, before: longer(question))
    found = win_rate(server, tmp_path)
    r = found["results"]
    assert (
        r["win_rate"][0] == 0.625
        and r["win_rate"][1] < 0.625 < r["win_rate"][2]
        and r[BIAS][0] == 0.5
        and r[TIES][0] == 0.25
        and r[AGREE][0] == 1
    )
    assert r["prompts"] == r["prompts_with_both"] == N and (
        found["unparseable"],
        found["unanswered"],
    ) == (0, 0)
    assert found["usage"] == {"prompt_tokens": 100 * 2 * N, "completion_tokens": 7 * 2 * N}
    assert len(server.seen) == 2 * N and all(
        headers["Authorization"] == f"Bearer {KEY}" for *_, headers in server.seen
    )
    shown = [answers_of(q) for q in server.questions]
    assert all(
        [a, b] in shown and [b, a] in shown
        for a, b in zip(map(str.strip, OURS), map(str.strip, THEIRS))
    )


@pytest.mark.parametrize("letter, share", [("A", 1.0), ("B", 0.0)])
def test_a_judge_that_always_names_one_place_is_seen_through(tmp_path, serve, letter, share):
    r = win_rate(serve(lambda question, before: f"Verdict: {letter}"), tmp_path)["results"]
    assert r["win_rate"] == (0.5, 0.5, 0.5) and r[BIAS] == (share,) * 3 and r[AGREE][0] == 0


def test_intervals_are_by_prompt(tmp_path, serve):
    "Four rows of one prompt with one fate are one observation."
    prompts = [PROMPTS[i // 4] for i in range(N)]
    ours, theirs = (
        [f"{i // 4}{i % 4}" + "!" * (i // 4 == 0) * 2 for i in range(N)],
        [f"{i // 4}{i % 4}!" for i in range(N)],
    )
    server = serve(lambda question, before: longer(question))
    judge = Judge(server.url, "fake")
    alone = judge_win_rate(
        judge,
        [f"{p} {i}" for i, p in enumerate(prompts)],
        ours,
        theirs,
        tmp_path / "a.jsonl",
        **QUICK,
    )["results"]["win_rate"]
    together = judge_win_rate(judge, prompts, ours, theirs, tmp_path / "b.jsonl", **QUICK)[
        "results"
    ]["win_rate"]
    assert (
        alone[0] == together[0] == 1 / 3 and alone[2] - alone[1] < 0.6 < together[2] - together[1]
    )


def test_what_is_no_verdict_is_counted_and_bounded(tmp_path, serve):
    says = {
        "Question 1?": "I like both.",
        "Question 2?": "A\nB",
        "Question 3?": None,
        "Question 5?": "",
        "Question 6?": "Verdict: C",
    }  # of 12; None: null

    def reply(question, before):
        odd = next((name for name in says if name in question), "")
        return (200, json.dumps(completion(says[odd])).encode(), {}) if odd else longer(question)

    server = serve(reply)
    found = win_rate(server, tmp_path)
    r, points = found["results"], [0, 0.5, 1, 1] * 3
    known = [x for i, x in enumerate(points) if i not in (1, 2, 3, 5, 6)]
    assert found["unparseable"] == 10 and found["unanswered"] == 0 and r["prompts_with_both"] == 7
    assert r["win_rate"][0] == pytest.approx(sum(known) / 7)
    assert r["win_rate_missing_lost"][0] == pytest.approx(sum(known) / 12) and r[
        "win_rate_missing_won"
    ][0] == pytest.approx((sum(known) + 5) / 12)
    assert (
        win_rate(server, tmp_path) == found and len(server.seen) == 2 * N
    )  # not asked again: it was paid for


def test_one_order_alone_does_not_count(tmp_path, serve):
    "A judge that only ever answers when the longer one is first would make every answer win."
    r = win_rate(
        serve(
            lambda question, before: (
                longer(question)
                if len(answers_of(question)[0]) >= len(answers_of(question)[1])
                else "Hm."
            )
        ),
        tmp_path,
    )["results"]
    assert r["prompts_with_both"] == 3 and r["win_rate"][0] == 0.5  # the ties


def test_nothing_but_noise_gives_no_rate(tmp_path, serve):
    r = win_rate(serve(lambda question, before: "42"), tmp_path)["results"]
    assert (
        r["win_rate"] is None
        and r[BIAS] is None
        and r["win_rate_missing_won"][0] == 1
        and r["win_rate_missing_lost"][0] == 0
    )


# -- servers that fail, stall, truncate and lie

HTML = (200, b"<html><body>Our gateway is fine.</body></html>", {"Content-Type": "text/html"})


def raw(x):
    return (200, json.dumps(x).encode(), {})


def stall(handler, question, before):
    time.sleep(1.2) if not before else None
    return longer(question)


def cut(handler, question, before):
    if before:
        return longer(question)
    whole = json.dumps(completion(longer(question))).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(whole)))
    handler.end_headers()
    handler.wfile.write(whole[:60])


def cut_unannounced(handler, question, before):
    if before:
        return longer(question)
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message": {"conte')


def hang_up(handler, question, before):
    return longer(question) if before else handler.connection.close()


TROUBLE = [
    "500",
    "503",
    "nan",
    "stall",
    "cut",
    "cut_unannounced",
    "hang_up",
    "html",
    "no_choices",
    "schema",
    "list",
    "content_list",
    "message_text",
    "null_choices",
    "empty",
    "bytes",
    "nested",
]


@pytest.mark.parametrize(
    "says",
    [
        lambda question, before: longer(question) if before > 1 else (500, b"oops", {}),
        lambda question, before: (
            longer(question) if before else (503, b"", {"Retry-After": "junk"})
        ),
        lambda question, before: longer(question) if before else (429, b"", {"Retry-After": "nan"}),
        stall,
        cut,
        cut_unannounced,
        hang_up,
        *(
            lambda question, before, lie=lie: longer(question) if before else lie
            for lie in (
                HTML,
                raw({"choices": []}),
                raw({"answer": "A"}),
                raw([]),
                raw(completion(["A"])),
                raw({"choices": [{"message": "A"}]}),
                raw({"choices": None}),
                (200, b"", {}),
                (200, b"\xff\xfe", {}),
                (200, b"[" * 100_000, {}),
            )
        ),
    ],
    ids=TROUBLE,
)
def test_trouble_that_passes_changes_nothing(tmp_path, serve, says):
    if says.__code__.co_argcount == 3 and "lie" in says.__code__.co_varnames:
        lie = says
        says = lambda question, before: lie(question, before)
    found = win_rate(serve(says), tmp_path, n=4, timeout=0.8 if says is stall else 30)
    assert (
        found["results"]["win_rate"][0] == 0.625
        and not found["unanswered"]
        and found["results"]["prompts_with_both"] == 4
    )


@pytest.mark.parametrize("after", ["1", "date"])
def test_429_waits_as_long_as_the_server_says(tmp_path, serve, after):
    def says(question, before):
        return (
            longer(question)
            if before
            else (
                429,
                b'{"error": {"message": "slow down"}}',
                {
                    "Retry-After": email.utils.formatdate(time.time() + 2, usegmt=True)
                    if after == "date"
                    else after
                },
            )
        )

    server = serve(says)
    assert win_rate(server, tmp_path, n=1)["results"]["prompts_with_both"] == 1
    for question in set(server.questions):
        first, second = [t for t, q, _ in server.seen if q == question]
        assert second - first > 0.95


def test_a_few_that_fail_for_good_do_not_lose_the_rest(tmp_path, serve):
    well = False
    server = serve(
        lambda question, before: (
            longer(question)
            if well or "Question 3?" not in question
            else (500, b'{"error": {"message": "bad luck"}}', {})
        )
    )
    found = win_rate(server, tmp_path, retries=2)
    assert (
        found["unanswered"] == 2
        and found["results"]["prompts_with_both"] == N - 1
        and len(server.seen) == 2 * (N - 1) + 2 * 3
    )
    [(why, times)] = found["why"].items()
    assert (
        times == 2 and "given up after 3 tries" in why and "HTTP 500" in why and "bad luck" in why
    )
    well, asked = True, len(server.seen)
    found = win_rate(server, tmp_path)
    assert (
        found["unanswered"] == 0
        and found["results"]["win_rate"][0] == 0.625
        and len(server.seen) == asked + 2
    )


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_4xx_stops_at_once_with_what_the_server_says(tmp_path, serve, status):
    server = serve(
        lambda question, before: (
            status,
            json.dumps({"error": {"message": f"no such luck, {KEY}"}}).encode(),
            {},
        )
    )
    with pytest.raises(JudgeError, match=rf"HTTP {status} from .*: no such luck, \[key\]$"):
        win_rate(server, tmp_path, workers=2)
    assert len(server.seen) <= 2 and len(set(server.questions)) == len(
        server.seen
    )  # those under way, none of them twice


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_is_not_sent_along_to_where_a_server_points(tmp_path, serve, monkeypatch, status):
    """A judge that moves to another host and port gets the question's answer, and no key: whoever
    redirects could send it anywhere."""
    arrived = []

    def elsewhere(handler):
        arrived.append(dict(handler.headers))
        raw = json.dumps(completion("Verdict: A")).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)

    other = serve(lambda question, before: pytest.fail("answered by `elsewhere`"))
    for method in ("do_GET", "do_POST"):
        usual = getattr(FakeServer.Handler, method)
        monkeypatch.setattr(
            FakeServer.Handler,
            method,
            lambda self, usual=usual: elsewhere(self) if self.server is other else usual(self),
        )
    server = serve(
        lambda question, before: (
            status,
            b"",
            {"Location": f"http://localhost:{other.server_address[1]}/v1/chat/completions"},
        )
    )
    answer, _ = Judge(server.url, "fake")("Which?")
    assert (
        answer == "Verdict: A"
        and len(arrived) == 1
        and server.seen[0][2]["Authorization"] == f"Bearer {KEY}"
    )
    assert not any(
        "authorization" in name.lower() or KEY in value for name, value in arrived[0].items()
    )


def test_400_on_one_question_leaves_the_others(tmp_path, serve):
    server = serve(
        lambda question, before: (
            (400, b'{"error": {"message": "filtered"}}', {})
            if "Question 9?" in question
            else longer(question)
        )
    )
    found = win_rate(server, tmp_path, workers=1)
    assert (
        found["unanswered"] == 2
        and found["results"]["prompts_with_both"] == N - 1
        and "filtered" in [*found["why"]][0]
    )
    assert len(server.seen) == 2 * N


def test_a_dead_server_ends_the_run_soon(tmp_path, serve):
    server = serve(lambda question, before: "")
    server.shutdown()
    server.server_close()
    started = time.monotonic()
    with pytest.raises(
        JudgeError, match="5 questions in a row without an answer.*no answer from .*refused"
    ):
        win_rate(server, tmp_path, retries=1, give_up=5)
    assert time.monotonic() - started < 30


def test_a_wait_of_hours_is_not_waited_for(tmp_path, serve):
    server = serve(
        lambda question, before: (429, b'{"error": {"message": "quota"}}', {"Retry-After": "86400"})
    )
    with pytest.raises(JudgeError, match="given up after 1 try: HTTP 429 .*quota"):
        win_rate(server, tmp_path, give_up=3)


# -- going on


def test_only_what_is_missing_is_asked(tmp_path, serve):
    server = serve(lambda question, before: longer(question))
    win_rate(server, tmp_path, n=5)
    assert len(server.seen) == 10
    whole = win_rate(server, tmp_path)
    assert len(server.seen) == 2 * N and len(set(server.questions)) == 2 * N
    file = tmp_path / "verdicts.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + lines[-1][:37])  # killed while it wrote
    assert win_rate(server, tmp_path) == whole and len(server.seen) == 2 * N + 1
    assert len(file.read_text().splitlines()) == 2 * N and all(
        json.loads(line)["verdict"] for line in file.read_text().splitlines()
    )
    file.write_bytes(lines[0] + b"{}\n" + b"".join(lines[1:]))
    with pytest.raises(ValueError, match="verdicts.jsonl: line 2: not a judge's answer"):
        win_rate(server, tmp_path)


def test_another_judge_template_answer_or_order_is_another_question(tmp_path, serve):
    server = serve(
        lambda question, before: longer(question) if "<candidate_a>" in question else "tie"
    )
    file = tmp_path / "verdicts.jsonl"

    def asked(prompts=PROMPTS, ours=OURS, template=None, **judge):
        before = len(server.seen)
        judge_win_rate(
            Judge(server.url, "fake", **judge),
            prompts,
            ours,
            THEIRS,
            file,
            **({"template": template} if template else {}),
            **QUICK,
        )
        return len(server.seen) - before

    assert asked() == 2 * N and asked() == 0
    assert asked(ours=[*OURS[:-1], "else"]) == 2 and asked([*PROMPTS[:-1], "else"]) == 2
    assert (
        asked(template="{prompt} {a} {b}?") == 2 * N
        and asked(options={"temperature": 0, "max_tokens": 9}) == 2 * N
    )
    assert asked(["p"] * N, THEIRS) == 2 * N  # equal answers: both orders are asked


def test_killed_and_started_again(tmp_path, serve):
    """kill -9 in the middle, then half a line: the second run asks for the rest alone, and ends
    where an undisturbed one ends."""

    def says(question, before):
        time.sleep(0.05)
        return longer(question)

    server, whole = serve(says), serve(says)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps(
                {"prompt": f"Question {i}", "policy": OURS[i % N], "baseline": THEIRS[i % N]}
            )
            + "\n"
            for i in range(40)
        )
    )

    def flags(s, out):
        return [
            "--answers",
            str(rows),
            "--judge_model",
            "fake",
            "--judge_url",
            s.url,
            "--judge_workers",
            "2",
            "--output_dir",
            str(tmp_path / out),
        ]

    if not (child := os.fork()):  # needs no imports of its own
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        os._exit(eval_main(flags(server, "broken")))
    file = tmp_path / "broken" / "verdicts.jsonl"
    while not file.exists() or len(file.read_bytes().splitlines()) < 10:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raw = file.read_bytes()
    kept, asked = len(raw.splitlines()), len(server.seen)
    assert 10 <= kept < 80
    file.write_bytes(raw[:-20])
    assert eval_main(flags(server, "broken")) == 0 and eval_main(flags(whole, "whole")) == 0
    assert len(server.seen) - asked == 80 - kept + 1
    a, b = [
        json.loads((tmp_path / out / "metrics.json").read_text()) for out in ("broken", "whole")
    ]
    assert a["results"] == b["results"] and a["judge"]["usage"] == b["judge"]["usage"]


def test_ctrl_c_keeps_what_is_under_way(tmp_path, serve):
    arrived = threading.Event()

    def says(question, before):
        arrived.set()
        time.sleep(0.3)
        return longer(question)

    server = serve(says)

    def press():
        arrived.wait()
        signal.pthread_kill(
            threading.main_thread().ident, signal.SIGINT
        )  # as a terminal does, to the first thread

    threading.Thread(target=press).start()
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            win_rate(server, tmp_path, workers=3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (
        1 <= len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == len(server.seen) < 2 * N
    )  # 3 as a rule; a busy machine may ask once more


def test_ctrl_c_while_a_thread_is_started(tmp_path, serve, monkeypatch):
    "Its pool never hears of this thread, whose answer is kept all the same."
    arrived, start = threading.Event(), threading.Thread.start

    def says(question, before):
        arrived.set()
        time.sleep(0.3)
        return longer(question)

    def cut_off(thread):
        start(thread)
        if thread.name.startswith("ThreadPoolExecutor"):
            arrived.wait()
            raise KeyboardInterrupt

    server = serve(says)
    monkeypatch.setattr(threading.Thread, "start", cut_off)
    with pytest.raises(KeyboardInterrupt):
        win_rate(server, tmp_path, workers=3)
    assert len(server.seen) == len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 1


# -- many at once, and not too many


def test_questions_are_asked_side_by_side(tmp_path, serve):
    together = threading.Barrier(6)

    def says(question, before):
        together.wait(30)
        return longer(question)  # none is answered before six are there

    assert not win_rate(serve(says), tmp_path, workers=6)["unanswered"]
    most, now, lock = 0, 0, threading.Lock()

    def counts(question, before):
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.03)
        with lock:
            now -= 1
        return longer(question)

    win_rate(serve(counts), tmp_path / "two", workers=2)
    assert most == 2


def test_requests_per_minute_count_later_tries(tmp_path, serve):
    server, started = (
        serve(lambda question, before: longer(question) if before else (500, b"", {})),
        time.monotonic(),
    )
    win_rate(server, tmp_path, n=3, per_minute=900, workers=8)
    times = sorted(t for t, *_ in server.seen)
    assert len(times) == 12 and all(t - started >= i / 15 for i, t in enumerate(times))


# -- the key


def test_the_key_is_nowhere(tmp_path, serve, capfd, monkeypatch):
    """Not when all is well, not when a server echoes it in answers, errors or junk; not with
    --debug; not at another host."""
    other = serve(lambda question, before: "Verdict: A")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": p, "policy": a, "baseline": b}) + "\n"
            for p, a, b in zip(PROMPTS, OURS, THEIRS)
        )
    )
    replies = [
        lambda question, before: longer(question) + f"\n{KEY}",
        lambda question, before: (
            401,
            json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}}).encode(),
            {},
        ),
        lambda question, before: (500, f"{'x' * 490}{KEY}".encode(), {}),
        lambda question, before: (200, f"{'x' * 190} Bearer {KEY}".encode(), {}),
        lambda question, before: (401, f'{{"detail": "{KEY}"}}'.encode(), {}),
        lambda question, before: raw(completion([KEY])),
        lambda question, before: (302, b"", {"Location": f"{other.url}/chat/completions"}),
    ]
    for i, says in enumerate(replies):
        flags = [
            "--answers",
            str(rows),
            "--judge_model",
            "fake",
            "--judge_url",
            serve(says).url,
            "--judge_retries",
            "0",
            "--output_dir",
            str(tmp_path / str(i)),
        ]
        status = eval_main(flags)
        assert (status == 0) == (i in (0, 6)) or i == 6, i
        if status:
            with pytest.raises(JudgeError) as e:
                eval_main([*flags, "--debug"])
            assert (
                KEY[:8] not in str(e.value)
                and e.value.__cause__ is None
                and (e.value.__suppress_context__ or e.value.__context__ is None)
            )
    said = "".join(capfd.readouterr())
    assert "Incorrect API key provided: [key]." in said and "HTTP 401" in said
    for text in (said, *(f.read_text() for f in tmp_path.rglob("*") if f.is_file())):
        assert KEY[:8] not in text
    assert all("Authorization" not in headers for *_, headers in other.seen)
    for wrong in (f"{KEY}\nX: y", KEY + "…"):
        monkeypatch.setenv("OPENAI_API_KEY", wrong)
        assert eval_main(flags) == 2
        said = "".join(capfd.readouterr())
        assert "OPENAI_API_KEY" in said and KEY[:8] not in said


def test_a_missing_key_is_named(tmp_path, serve, monkeypatch):
    server = serve(lambda question, before: (401, b"{}", {}) if before >= 0 else "")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(JudgeError, match="OPENAI_API_KEY, which would hold the key, is not set"):
        win_rate(server, tmp_path)
    assert all("Authorization" not in headers for *_, headers in server.seen)


def test_no_other_variable_of_the_library_is_sent(serve, monkeypatch):
    "A judge of one's own is told neither OpenAI's key nor whose account it is."
    server = serve(lambda question, before: longer(question))
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    question = judge_questions(PROMPTS[:1], OURS[:1], THEIRS[:1])[0][1]
    Judge(server.url, "fake", key_env="MY_KEY")(question)
    monkeypatch.setenv("MY_KEY", "sk-mine")
    Judge(server.url, "fake", key_env="MY_KEY")(question)
    (*_, without), (*_, own) = server.seen
    assert "Authorization" not in without and own["Authorization"] == "Bearer sk-mine"
    assert not any(KEY in value for headers in (without, own) for value in headers.values())


def test_without_the_library_a_judge_says_how_to_install_it(tmp_path, serve, monkeypatch, capsys):
    server = serve(lambda question, before: longer(question))
    judge = Judge(server.url, "fake")
    questions = judge_questions(PROMPTS, OURS, THEIRS)
    assert judge_cost(judge, questions, tmp_path / "v.jsonl")["requests"] == 2 * N
    monkeypatch.setitem(sys.modules, "openai", None)
    for use in (judge.look, lambda: judge("?"), lambda: win_rate(server, tmp_path)):
        with pytest.raises(JudgeError, match=r"'openai', which .*: pip install 'slpo\[judge\]'$"):
            use()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "policy": "a", "baseline": "b"}\n')
    flags = f"--answers {tmp_path}/rows.jsonl --judge_model fake --judge_url {server.url}"
    assert eval_main([*flags.split(), "--output_dir", str(tmp_path / "out")]) == 2
    assert "pip install 'slpo[judge]'" in capsys.readouterr().err and not server.seen
    ask_judge(lambda question: ("Verdict: A", {}), questions, tmp_path / "f.jsonl", desc=None)


def test_the_cost_is_about_what_is_used(tmp_path, serve):
    server = serve(lambda question, before: longer(question))
    judge, questions = (
        Judge(server.url, "fake", options={"temperature": 0, "max_tokens": 100}),
        judge_questions(PROMPTS, OURS, THEIRS),
    )
    cost = judge_cost(judge, questions, tmp_path / "v.jsonl", 2.0, 10.0)
    assert (
        cost["requests"] == 24
        and cost["output_tokens"] == 2400
        and cost["price"] == (2 * cost["input_tokens"] + 10 * 2400) / 1e6
    )
    ask_judge(judge, questions[:10], tmp_path / "v.jsonl", desc=None)
    assert judge_cost(judge, questions, tmp_path / "v.jsonl")[
        "requests"
    ] == 14 and "price" not in judge_cost(judge, questions, tmp_path / "v.jsonl")


# -- the command


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--model_name_or_path or --answers"),
        (["--model_name_or_path", "m", "--answers", "a"], "either"),
        (["--answers", "gone.jsonl"], "gone.jsonl"),
        (["--answers", "a", "--dry_run"], "--judge_model"),
        (["--answers", "a", "--judge_modle", "x"], "did you mean --judge_model?"),
        (["--answers", "a", "--eval_size", "0"], "eval_size=0"),
        (["--answers", "a", "--price_in", "1"], "--price_out"),
        (["--model_name_or_path", "m", "--baseline", "reference"], "--reference_name_or_path"),
        (["--answers", "a", "--baseline", "reference"], "nothing is generated"),
        (
            ["--answers", "a", "--judge_model", "m", "--judge_url", "localhost:8000"],
            "judge_url='localhost:8000'",
        ),
        (["--answers", "a", "--judge_model", "m", "--judge_options", "{"], "not JSON"),
        (["--answers", "a", "--judge_template", "template.txt"], "no {a} and no {b}"),
        (["--answers", "rows.jsonl"], "rows.jsonl: answer 2: 'policy': expected a string"),
    ],
)
def test_bad_settings_are_named(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("template.txt").write_text("{prompt}: yes or no?")
    Path("rows.jsonl").write_text(
        '{"prompt": "p", "policy": "a", "baseline": "b"}\n{"prompt": "p", "baseline": "b"}\n'
    )
    assert eval_main(flags) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and said.startswith("slpo_eval: ")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "Folders of two tiny models with one tokenizer that has a chat template."
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    from slpo.world import preference_world
    from slpo.tokens import train_tokenizer

    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer([r["chosen"] for r in preference_world(50)], vocab_size=400)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    for i, name in enumerate(("policy", "reference")):
        torch.manual_seed(i)
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=400,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=64,
                initializer_range=0.1,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def test_slpo_eval_from_models_to_a_table(tmp_path, serve, models, capsys, monkeypatch):
    server = serve(lambda question, before: longer(question))
    flags = [
        "--model_name_or_path",
        str(models / "policy"),
        "--reference_name_or_path",
        str(models / "reference"),
        "--eval_size",
        "20",
        "--max_new_tokens",
        "8",
        "--judge_model",
        "fake",
        "--judge_url",
        server.url,
        "--price_in",
        "2",
        "--price_out",
        "10",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert eval_main([*flags, "--dry_run"]) == 0
    assert (
        "to ask the judge: 40 requests" in capsys.readouterr().out
        and not server.seen
        and not (tmp_path / "out").exists()
    )
    assert eval_main(flags) == 0, capsys.readouterr().err
    said, numbers = (
        capsys.readouterr().out,
        json.loads((tmp_path / "out" / "metrics.json").read_text()),
    )
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    ]
    truth = (
        sum(
            (len(r["policy"].strip()) > len(r["baseline"].strip()))
            + 0.5 * (len(r["policy"].strip()) == len(r["baseline"].strip()))
            for r in rows
        )
        / 20
    )
    assert (
        len(rows) == 20
        and numbers["results"]["judge: win rate"][0] == pytest.approx(truth)
        and len(server.seen) == 40
    )
    from slpo.data import load_preferences

    assert {r["baseline"] for r in rows} <= set(load_preferences("world", "test")["chosen"])
    low, high = numbers["results"]["KL to the reference, nats per answer"][1:]
    assert (
        0 < low < high
        and numbers["judge"]["usage"]["prompt_tokens"] == 4000
        and numbers["config"]["seed"] == 0
        and "held-out preference accuracy" in numbers["results"]
    )
    assert (
        (tmp_path / "out" / "table.md").read_text() in said
        and "| judge: win rate |" in said
        and "0.01 in all" in said
    )
    monkeypatch.setattr(
        "slpo.cli_eval._generate_answers", lambda *_: pytest.fail("generated again")
    )
    assert (
        eval_main(flags) == 0
        and len(server.seen) == 40
        and json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
        == numbers["results"]
    )
    assert (
        eval_main([*flags, "--seed", "1"]) == 2
        and "made with another seed" in capsys.readouterr().err
    )
    os.utime(models / "policy" / "model.safetensors")  # trained again
    assert (
        eval_main(flags) == 2
        and "made with another weights (their date)" in capsys.readouterr().err
    )


def test_messages_and_a_third_model(tmp_path, serve, models, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "prompt": [{"role": "user", "content": f"What is {i}?"}],
                    **{
                        c: [{"role": "assistant", "content": f"{c} {i}"}]
                        for c in ("chosen", "rejected")
                    },
                }
            )
            + "\n"
            for i in range(6)
        )
    )
    Path("mine.txt").write_text(
        "{prompt}\n<candidate_a>\n{a}\n</candidate_a>\n<candidate_b>\n{b}\n</candidate_b>"
    )
    server = serve(lambda question, before: longer(question))
    flags = [
        "--model_name_or_path",
        str(models / "policy"),
        "--dataset_name",
        "rows.jsonl",
        "--max_new_tokens",
        "4",
        "--judge_model",
        "fake",
        "--judge_url",
        server.url,
        "--judge_template",
        "mine.txt",
    ]
    assert eval_main(flags) == 0, capsys.readouterr().err
    assert server.questions[0].startswith("user: What is ") and "chosen" in server.questions[0]
    assert (
        eval_main([*flags, "--baseline", str(models / "reference"), "--output_dir", "third"]) == 0
    ), capsys.readouterr().err
    assert not any("chosen" in q for q in server.questions[12:])
    assert parse_eval(flags).output_dir == "runs/eval" and Path("runs/eval/table.md").exists()


# -- before anything is generated


@pytest.mark.parametrize(
    "text, words",
    [
        ("{prompt} {a} {b} {zz}", "{zz}"),
        ("{prompt} {a} {b} {A}", "{A}"),
        ("{prompt} {a} {b} { a }", "{ a }"),
        ("{{prompt}} {prompt} {a} {b}", "{{prompt}}"),
        ("{prompt} {answer_a} {b}", "no {a}"),
    ],
)
def test_a_word_in_braces_that_is_no_place_is_refused(text, words):
    with pytest.raises(ValueError) as e:
        judge_questions(["p"], ["x"], ["y"], text)
    assert words in str(e.value)


@pytest.mark.parametrize(
    "text, asked",
    [
        ('{prompt}|{a}|{b}|{"verdict": "A"}', 'p|x {zz}|y|{"verdict": "A"}'),
        ('{"q": {prompt}, "a": {a}, "b": {b}}', '{"q": p, "a": x {zz}, "b": y}'),
        ("{prompt}{a}{b} {} {1} {two words}", "px {zz}y {} {1} {two words}"),
    ],
)
def test_braces_that_are_text_stay(text, asked):
    assert judge_questions(["p"], ["x {zz}"], ["y"], text)[0][1] == asked


@pytest.fixture
def nothing_generated(tmp_path, monkeypatch, models):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("slpo.cli_eval._generate_answers", lambda *_: pytest.fail("generated"))
    return [
        "--model_name_or_path",
        str(models / "policy"),
        "--eval_size",
        "4",
        "--judge_model",
        "fake",
    ]


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "gone.txt: no such file"),
        ("folder", "gone.txt: is a folder"),
        (b"\xff", "gone.txt: not UTF-8"),
        (b"{prompt} {a} {b} {zz}", "gone.txt: the judge's template has {zz}"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(nothing_generated, capsys, content, words):
    if content == "folder":
        Path("gone.txt").mkdir()
    elif content:
        Path("gone.txt").write_bytes(content)
    assert (
        eval_main(
            [
                *nothing_generated,
                "--judge_url",
                "http://127.0.0.1:1/v1",
                "--judge_template",
                "gone.txt",
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert "--judge_template " + words in said and "Errno" not in said


def test_a_key_that_is_asked_for_and_not_set_is_said_first(
    nothing_generated, capsys, monkeypatch, serve
):
    server = serve(lambda question, before: "tie")
    assert (
        eval_main([*nothing_generated, "--judge_url", server.url, "--judge_key_env", "MY_KEY"]) == 2
    )
    assert "--judge_key_env MY_KEY: this environment variable" in capsys.readouterr().err
    monkeypatch.delenv("OPENAI_API_KEY")
    assert (
        eval_main(nothing_generated) == 2 and "OPENAI_API_KEY" in capsys.readouterr().err
    )  # that server takes none without
    assert eval_main([*nothing_generated, "--judge_key_env", "MY_KEY", "--dry_run"]) == 0


def test_a_judge_that_is_not_there_is_said_first(nothing_generated, capsys, serve):
    server = serve(lambda question, before: "tie")
    server.shutdown()
    server.server_close()
    assert eval_main([*nothing_generated, "--judge_url", server.url]) == 2
    assert (
        f"no judge at {server.url}/chat/completions: Connection refused" in capsys.readouterr().err
    )
    assert eval_main([*nothing_generated, "--judge_url", server.url, "--dry_run"]) == 0


# -- a real server


def test_transformers_serve(tmp_path, models):
    "`transformers serve` with a tiny random model: it answers, and what it says is no verdict."
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(
            package,
            reason="transformers serve needs fastapi, uvicorn and openai: "
            "pip install 'transformers[serving]'",
        )
    import socket
    import urllib.request

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        str(models / "policy"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    log = open(tmp_path / "log", "wb")  # noqa: SIM115
    p = subprocess.Popen(
        command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert p.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        judge = Judge(
            f"http://127.0.0.1:{port}/v1",
            str(models / "policy"),
            options={"temperature": 0, "max_tokens": 8},
        )
        found = judge_win_rate(
            judge,
            PROMPTS[:2],
            OURS[:2],
            THEIRS[:2],
            tmp_path / "verdicts.jsonl",
            retries=0,
            desc=None,
        )
        assert not found["unanswered"], (found, (tmp_path / "log").read_text())
        assert found["unparseable"] == 4 and found["results"]["win_rate"] is None
        assert (
            found["usage"]["prompt_tokens"] > 4 * 50
            and 0 < found["usage"]["completion_tokens"] <= 4 * 8
        )
    finally:
        p.terminate()
        p.wait(20)
        log.close()
