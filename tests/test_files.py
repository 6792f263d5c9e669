"""Which rows a path, a folder, a pattern and a split stand for, and messages for unclear ones."""

import errno
import gzip
import json
import logging
import shutil
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetGenerationError

from slpo.cli_eval import eval_main
from slpo.cli import train_main
from slpo.files import ROW, BadRows
from slpo.data import load_preferences
from slpo.tokens import tokenize_preferences, train_tokenizer

datasets.disable_progress_bars()


def rows(n=3, start=0):
    return [
        dict(prompt=f"Question {i}:", chosen=f" yes {i}", rejected=f" no {i}")
        for i in range(start, start + n)
    ]


def put(path, some=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows() if some is None else some)), encoding="utf-8")
    return path


def numbers(data):
    return [int(row["prompt"].split()[1].rstrip(":")) for row in data]


# files of a folder; those that are the split train, and no others
READ = [
    "train.jsonl",
    "train-00000-of-00001.jsonl",
    "train_0001.jsonl",
    "train.7.json",
    "data/train-0.parquet",
    "train-part-2.jsonl",
    "train_shard3.jsonl",
    "sub/train.jsonl.gz",
    "TRAIN/../train.JSONL",
    "train/0000.jsonl",
    "train/a.csv",
    "train/part/b.jsonl",
    "train-00000-of-00001-2a1df75c6bce91ab.parquet",
]
LEFT = [
    "train.old.jsonl",
    "train-old.jsonl",
    "train copy.jsonl",
    "train.bak.jsonl",
    "train~.jsonl",
    "train.jsonl~",
    "train.jsonl.bak",
    "train (1).jsonl",
    "training.jsonl",
    "training-old.jsonl",
    "train2.jsonl",
    "retrain.jsonl",
    "train-backup.jsonl",
    "train_orig.parquet",
    "train.1.old.jsonl",
    ".train.jsonl",
    "._train.jsonl",
    ".ipynb_checkpoints/train-checkpoint.jsonl",
    ".ipynb_checkpoints/train.jsonl",
    ".cache/train/0000.jsonl",
    "__MACOSX/train.jsonl",
    "train/.hidden.jsonl",
    "train/0000.old.jsonl",
    "train/0000-copy.jsonl",
    "train/test.jsonl",
    "test.jsonl",
    "test/0000.jsonl",
    "validation/train_of_thought.jsonl",
    "train.txt",
    "train_prefs.jsonl",
]


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    name, data = path.name.lower(), Dataset.from_list(rows())
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows())).encode()))
    elif name.endswith(".parquet"):
        data.to_parquet(path)
    elif name.endswith(".csv"):
        data.to_csv(path)
    else:
        put(path)


@pytest.mark.parametrize("name", READ)
def test_a_file_of_the_split_is_read(name, tmp_path):
    (tmp_path / name).parent.parent.mkdir(exist_ok=True), (tmp_path / "TRAIN").mkdir(exist_ok=True)
    write(tmp_path / name)
    assert numbers(load_preferences(tmp_path)) == [0, 1, 2]


@pytest.mark.parametrize("name", LEFT)
def test_another_file_is_not_read(name, tmp_path):
    write(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nor any other file of the split 'train'"):
        load_preferences(tmp_path)
    put(tmp_path / "train_0001.jsonl")
    assert numbers(load_preferences(tmp_path)) == [0, 1, 2]


def test_what_was_read_is_said(tmp_path, caplog):
    for i in (1, 2):
        put(tmp_path / f"train_{i}.jsonl", rows(i))
    put(tmp_path / "test.jsonl")
    with caplog.at_level(logging.INFO, logger="slpo"):
        data = load_preferences(tmp_path)
    said = "read: train_1.jsonl (1 rows), train_2.jsonl (2 rows); not read: test.jsonl"
    assert data.info.description == said and [
        (r.levelname, r.getMessage()) for r in caplog.records
    ] == [("INFO", said)]
    put(tmp_path / "train.old.jsonl")
    caplog.clear()
    load_preferences(tmp_path)  # as much like the split as that, it is a warning
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", said + ", train.old.jsonl")
    ]


@pytest.mark.parametrize(
    "names, message",
    [
        (
            ["train.jsonl", "train.parquet"],
            "train.jsonl and train.parquet seem to hold the same rows",
        ),
        (
            ["a/train_01.json", "a/train_01.csv"],
            "a/train_01.csv and a/train_01.json seem to hold the same rows",
        ),
        (["train.jsonl", "train/0.jsonl"], "train.jsonl and train/0.jsonl are both called train"),
        (
            ["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"],
            "2 of 00003 parts of train are there; the first that is missing is number 1",
        ),
        (
            ["train-00000-of-00001.jsonl", "train.jsonl"],
            "train.jsonl lies beside 00001 numbered parts of train",
        ),
    ],
)
def test_rows_that_would_count_twice_or_are_missing_are_an_error(names, message, tmp_path):
    for name in names:
        write(tmp_path / name)
    with pytest.raises(ValueError) as e:
        load_preferences(tmp_path)
    assert message in str(e.value)


@pytest.mark.parametrize("name", ["train.jsonl", "train/0.jsonl"])
def test_a_file_and_its_packed_copy_are_one_file(name, tmp_path, caplog):
    write(tmp_path / name)
    write(tmp_path / f"{name}.gz")
    with caplog.at_level(logging.INFO, logger="slpo"):
        data = load_preferences(tmp_path)
    assert numbers(data) == [0, 1, 2] and f"not read: {name}.gz" in caplog.text
    put(tmp_path / name, rows(2))  # they have drifted apart: which one is meant?
    with pytest.raises(ValueError, match=f"{name} and {name}.gz seem to hold the same rows"):
        load_preferences(tmp_path)
    (tmp_path / f"{name}.gz").write_bytes(b"no gzip data")
    with pytest.raises(ValueError, match="seem to hold the same rows"):
        load_preferences(tmp_path)


def test_the_same_name_in_two_folders_is_two_files(tmp_path):
    "As HH has them."
    for i, folder in enumerate(("helpful", "harmless")):
        put(tmp_path / folder / "train.jsonl", rows(2, 2 * i))
    assert numbers(load_preferences(tmp_path)) == [2, 3, 0, 1]
    put(tmp_path / "helpful" / "train.jsonl", [*rows(1), {**rows(1)[0], "chosen": " "}])
    with pytest.raises(
        BadRows, match=r"helpful/train\.jsonl line 2 \(row 3\): column 'chosen': empty completion"
    ):
        load_preferences(tmp_path)


WAYS = {
    "a file": lambda f: put(f / "a.jsonl", rows(8)),
    "a list": lambda f: [put(f / "a.jsonl", rows(3)), put(f / "b.jsonl", rows(5, 3))],
    "a pattern": lambda f: (
        put(f / "a.jsonl", rows(3)),
        put(f / "b.jsonl", rows(5, 3)),
        f"{f}/*.jsonl",
    )[2],
    "a folder": lambda f: put(f / "train.jsonl", rows(8)).parent,
    "parts": lambda f: (
        put(f / "train_1.jsonl", rows(3)),
        put(f / "train_2.jsonl", rows(5, 3)).parent,
    )[1],
    "a data set on disk": lambda f: (
        Dataset.from_list(rows(8)).save_to_disk(f / "disk"),
        f / "disk",
    )[1],
    "splits on disk": lambda f: (
        DatasetDict(
            train=Dataset.from_list(rows(8)), test=Dataset.from_list(rows(2, 50))
        ).save_to_disk(f / "disk"),
        f / "disk",
    )[1],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_split_is_what_datasets_takes_it_for(way, tmp_path):
    path, oracle = WAYS[way](tmp_path / "data"), tmp_path / "oracle"
    Dataset.from_list(rows(8)).to_parquet(oracle / "train.parquet")
    for split in (
        "train",
        "train[:3]",
        "train[6:]",
        "train[10%:60%]",
        "train[-2:]",
        "train[2:4]+train[:1]",
    ):
        want = datasets.load_dataset(
            "parquet",
            data_files={"train": str(oracle / "train.parquet")},
            split=split,
            cache_dir=oracle,
        )
        assert numbers(load_preferences(path, split)) == numbers(want), split
    for split in ("test", "nonsense", "test[:3]", "train+test"):
        if way == "splits on disk" and "test" in split:
            continue
        with pytest.raises((ValueError, FileNotFoundError)) as e:
            load_preferences(path, split)
        name = "nonsense" if split == "nonsense" else "test"
        assert name in str(e.value) and (
            "no splits" in str(e.value)
            or "of the split" in str(e.value)
            or "has no split" in str(e.value)
        )
    for split in ("train[a]", "train[:3", "", None, 3):
        with pytest.raises(ValueError, match="split"):
            load_preferences(path, split)
    if way == "splits on disk":
        assert numbers(load_preferences(path, "test")) == [50, 51]


def test_bad_rows_of_a_part_are_found_in_that_part_alone(tmp_path):
    put(tmp_path / "rows.jsonl", [*rows(4), {**rows(1)[0], "chosen": " "}, *rows(4)])
    assert len(load_preferences(tmp_path / "rows.jsonl", "train[:4]")) == 4
    with pytest.raises(BadRows, match="row 2: column 'chosen': empty completion"):
        load_preferences(tmp_path / "rows.jsonl", "train[2:]")


LAYOUTS = {
    "an array": ("rows.json", lambda p: p.write_text(json.dumps(rows(), indent=1))),
    "lines called .json": ("rows.json", put),
    "a table": ("rows.csv", lambda p: Dataset.from_list(rows()).to_csv(p)),
    "upper case": ("ROWS.JSONL", put),
    "upper case, zipped": ("ROWS.JSONL.GZ", write),
    "upper case, Parquet": ("ROWS.PARQUET", write),
    "Windows' mark": (
        "rows.jsonl",
        lambda p: p.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows())).encode()),
    ),
    "a mark before an array": (
        "rows.json",
        lambda p: p.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows()).encode()),
    ),
    "a table with a mark": (
        "rows.csv",
        lambda p: p.write_bytes(
            b"\xef\xbb\xbfprompt,chosen,rejected\r\n"
            + b"".join(f'"Question {i}:", yes {i}, no {i}\r\n'.encode() for i in range(3))
        ),
    ),
    "brackets in the name": ("rows[1].jsonl", put),
    "brackets, Parquet": ("rows[1].parquet", write),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_people_have_is_read(layout, tmp_path):
    name, make = LAYOUTS[layout]
    make(tmp_path / name)
    assert list(load_preferences(tmp_path / name)) == rows()


def test_cells_of_a_table_are_texts(tmp_path):
    (tmp_path / "rows.csv").write_text(
        'prompt,chosen,rejected\n"2+2, is\n",4,NA\n' + f'long,{"x" * 200_000},None\n3,null,\n'
    )
    with pytest.raises(BadRows, match="row 2: column 'rejected': missing"):
        load_preferences(tmp_path / "rows.csv")
    data = load_preferences(tmp_path / "rows.csv", on_bad_rows="drop")
    assert (
        dict(data.remove_columns(ROW)[0]) == dict(prompt="2+2, is\n", chosen="4", rejected="NA")
        and data[1]["rejected"] == "None"
    )


@pytest.mark.parametrize(
    "path",
    [
        "mine/data",
        "data/rows.csv",
        "./rows",
        "rows.json",
        "rows.jsonl",
        "../rows",
        "/no/such/folder",
        "~/no-such-folder-here",
        "a/b/c",
        "rows*.jsonl",
        "folder/",
        "C:\\rows",
    ],
)
def test_a_path_that_is_not_there_is_said_to_be_not_there(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as e:
        load_preferences(path)
    assert (
        "no such file" in str(e.value)
        and str(tmp_path) in str(e.value)
        or path.startswith(("/", "~"))
    )
    assert (
        train_main(
            [
                "--dataset_name",
                path,
                "--model_name_or_path",
                "none",
                "--output_dir",
                "out",
                "--report_to",
                "none",
            ]
        )
        == 2
    )
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        load_preferences([path])


def test_evaluation_takes_a_file_whole_and_the_test_split_of_a_folder(tmp_path, capsys):
    (
        put(tmp_path / "held_out.jsonl"),
        put(tmp_path / "f" / "train.jsonl"),
        put(tmp_path / "f" / "test.jsonl", rows(2)),
    )
    judge = [
        "--judge_model",
        "none",
        "--dry_run",
        "--model_name_or_path",
        "none",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    from slpo.cli_eval import _eval_rows, parse_eval

    assert [
        len(_eval_rows(parse_eval(["--dataset_name", str(path), *judge])))
        for path in (tmp_path / "held_out.jsonl", tmp_path / "f")
    ] == [3, 2]
    assert (
        eval_main(
            ["--dataset_name", str(tmp_path / "held_out.jsonl"), "--dataset_split", "test", *judge]
        )
        == 2
        and "has no splits" in capsys.readouterr().err
    )


# other people's columns, and what must be said of them
OTHERS = [
    (
        dict(question="Q", answer="y"),
        [
            "'rejected': missing in each of 30 rows",
            "question, answer",
            "rename 'question' to 'prompt'",
        ],
    ),
    (
        dict(prompt="Q", completion="y", label=True),
        [
            "'rejected': missing",
            "prompt, completion, label",
            "two completions of one prompt are needed",
        ],
    ),
    (
        dict(prompt="Q", response_1="y", response_2="n", better=1),
        ["write the better one of 'response_1' and 'response_2' as 'chosen'"],
    ),
    (
        dict(history="Q", human_ref_A="y", human_ref_B="n"),
        ["'history' to 'prompt'", "the better one of 'human_ref_a' and 'human_ref_b'"],
    ),
    (
        dict(system="s", question="Q", chosen="y", rejected="n"),
        ["'prompt': missing", "rename 'question' to 'prompt'"],
    ),
    (
        dict(Instruction="Q", accepted="y", bad="n"),
        ["'instruction' to 'prompt', 'accepted' to 'chosen', 'bad' to 'rejected'"],
    ),
    (dict(prompt="Q", responses=["a", "b"], ranks=[0, 1]), ["'chosen': missing", "responses"]),
    (
        dict(prompt="Q", completions=["a", "b"], ranking=[0, 1]),
        ["'ranks': missing", "rename 'ranking' to 'ranks'"],
    ),
    (
        {"Prompt": "Q", " chosen ": "a", "REJECTED": "b"},
        ["rename 'prompt' to 'prompt', ' chosen ' to 'chosen', 'rejected' to 'rejected'"],
    ),
    (dict(text="x"), ["(the columns are text)", "a preference has two completions of one prompt"]),
]


@pytest.mark.parametrize("row, messages", OTHERS)
def test_other_names_of_columns_are_said_once(row, messages, tmp_path):
    for on_bad_rows in ("raise", "drop"):
        with pytest.raises(BadRows) as e:
            load_preferences(put(tmp_path / "rows.jsonl", [row] * 30), on_bad_rows=on_bad_rows)
        said = str(e.value)
        assert all(m.lower() in said.lower() for m in messages), said
        assert (
            said.lower().count("rejected") < 6
            and "drop" not in said
            and "rows.jsonl: column" in said
        )
    if "chosen" not in row:
        with pytest.raises(BadRows) as e:
            tokenize_preferences(Dataset.from_list([row] * 30), train_tokenizer(["a"]))
        assert "missing" in str(e.value) and "the columns are" in str(e.value)


def test_dropping_is_not_recommended_where_nothing_would_be_left(tmp_path):
    with pytest.raises(BadRows) as e:
        load_preferences(put(tmp_path / "rows.jsonl", [{**row, "chosen": ""} for row in rows()]))
    assert "on_bad_rows" not in str(e.value) and "no row would be left" in str(e.value)


def test_a_full_disk_is_named_with_its_folder(tmp_path, monkeypatch):
    "However the library wraps it."
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def generate(cls, *args, **kwargs):
        try:
            raise full
        except OSError as e:
            raise DatasetGenerationError("An error occurred while generating the dataset") from e

    monkeypatch.setattr(Dataset, "from_generator", classmethod(generate))
    with pytest.raises(OSError) as e:
        load_preferences(put(tmp_path / "rows.jsonl"))
    assert (
        "No space left" in str(e.value)
        and str(tmp_path) in str(e.value)
        and "TMPDIR" in str(e.value)
        and "MB are free" in str(e.value)
    )
    monkeypatch.setattr(Dataset, "map", lambda *args, **kwargs: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="TMPDIR"):
        tokenize_preferences(Dataset.from_list(rows()), train_tokenizer(["a"]))


def test_a_row_of_a_data_set_on_disk_may_be_bad(tmp_path):
    Dataset.from_list([*rows(), {**rows(1)[0], "rejected": None}]).save_to_disk(tmp_path / "disk")
    with pytest.raises(BadRows, match="row 3: column 'rejected': missing"):
        load_preferences(tmp_path / "disk")
    shutil.rmtree(tmp_path / "disk")
    assert not Path(tmp_path / "disk").exists()


# rows that loading has left out, or that lie in several files: who is named when tokenising finds
# more
LONG = "what is " * 60


def put_with_faults(folder):
    "Row 1 has an empty completion, and row 3 is too long for 60 tokens."
    some = rows(6)
    some[1]["chosen"], some[3]["prompt"] = " ", LONG
    return put(folder / "rows.jsonl", some)


def test_rows_keep_their_numbers_when_others_are_left_out(tmp_path, caplog):
    data = load_preferences(put_with_faults(tmp_path), on_bad_rows="drop")
    tokenizer = train_tokenizer(["Question yes no"])
    for some in (data, data.shuffle(seed=1), data.select([2, 0])):
        with pytest.raises(BadRows, match="row 3: column 'prompt'") as e:
            tokenize_preferences(some, tokenizer, max_length=60)
        assert [f.row for f in e.value.findings] == [3]
    assert list(
        tokenize_preferences(data, tokenizer, max_length=60, on_bad_rows="drop")["row"]
    ) == [0, 2, 4, 5]
    assert "dropped: 1 of 5 rows are bad" in caplog.text and "row 3: column 'prompt'" in caplog.text
    stream = data.to_iterable_dataset()
    with pytest.raises(BadRows, match="row 3: column 'prompt'"):
        list(tokenize_preferences(stream, tokenizer, max_length=60))


def test_a_file_of_good_rows_has_no_further_columns(tmp_path):
    assert load_preferences(put(tmp_path / "rows.jsonl")).column_names == [
        "prompt",
        "chosen",
        "rejected",
    ]


@pytest.mark.parametrize("way", ["folder", "list", "pattern"])
def test_tokenising_names_file_and_line(way, tmp_path):
    put(tmp_path / "train-0.jsonl", rows(3))
    put(tmp_path / "train-1.jsonl", [*rows(1, 3), {**rows(1, 4)[0], "prompt": LONG}])
    path = {
        "folder": tmp_path,
        "pattern": f"{tmp_path}/*.jsonl",
        "list": [tmp_path / "train-0.jsonl", tmp_path / "train-1.jsonl"],
    }[way]
    data, tokenizer = load_preferences(path), train_tokenizer(["Question yes no"])
    for some in (data, data.shuffle(seed=3)):
        with pytest.raises(BadRows, match=r"train-1\.jsonl line 2 \(row 4\): column 'prompt'"):
            tokenize_preferences(some, tokenizer, max_length=60)


def test_rows_of_two_data_sets_put_together_are_counted_anew(tmp_path):
    data = load_preferences(put_with_faults(tmp_path), on_bad_rows="drop")
    tokenizer = train_tokenizer(["Question yes no"])
    both = datasets.concatenate_datasets([data, data])
    with pytest.raises(BadRows) as e:
        tokenize_preferences(both, tokenizer, max_length=60)
    assert [f.row for f in e.value.findings] == [2, 7]
    beside = datasets.concatenate_datasets(
        [Dataset.from_list(rows(2)), data]
    )  # one of them has no numbers
    with pytest.raises(BadRows) as e:
        tokenize_preferences(beside, tokenizer, max_length=60)
    assert [f.row for f in e.value.findings] == [4]


def test_a_column_that_ranked_rows_do_not_use_may_be_missing_in_some(tmp_path):
    ranked = dict(prompt="Q:", completions=["a", "b"], ranks=[0, 1])
    data = load_preferences(put(tmp_path / "r.jsonl", [{**ranked, "rejected": ["c"]}, ranked]))
    assert [dict(row) for row in data] == [ranked, ranked]


def test_the_commands_name_rows_of_the_file(tmp_path, caplog, chat_model):
    from slpo.cli_eval import _eval_rows, parse_eval
    from slpo.cli import _load_split
    from slpo.flags import parse_run

    path = str(put_with_faults(tmp_path))
    run, args = parse_run(
        [
            "--dataset_name",
            path,
            "--on_bad_rows",
            "drop",
            "--output_dir",
            str(tmp_path / "out"),
            "--report_to",
            "none",
            "--model_name_or_path",
            chat_model,
        ]
    )
    assert sorted(_load_split(run, args, "train")[ROW]) == [0, 2, 3, 4, 5]
    found = _eval_rows(
        parse_eval(
            ["--dataset_name", path, "--on_bad_rows", "drop", "--model_name_or_path", chat_model]
        )
    )
    assert sorted(found[ROW]) == [0, 2, 3, 4, 5]


# rows that would count twice
def twins(folder, way):
    one = put(folder / "one.jsonl", rows(4))
    if way == "the same name":
        return [one, one]
    if way == "another way to it":
        return [one, folder / "sub" / ".." / "one.jsonl"]
    if way == "a link":
        (folder / "two.jsonl").symlink_to(one)
        return [one, folder / "two.jsonl"]
    if way == "a copy":
        shutil.copy(one, folder / "two.jsonl")
        return [one, folder / "two.jsonl"]
    if way == "another format":
        Dataset.from_list(rows(4)).to_parquet(folder / "two.parquet")
        return [one, folder / "two.parquet"]
    if way == "a table":
        Dataset.from_list(rows(4)).to_csv(folder / "two.csv")
        return [one, folder / "two.csv"]
    if way == "packed":
        (folder / "one.jsonl.gz").write_bytes(gzip.compress(one.read_bytes()))
        return [one, folder / "one.jsonl.gz"]
    if way == "a pattern over two formats":
        Dataset.from_list(rows(3)).to_parquet(folder / "one.parquet")
        return f"{folder}/one.*"
    if way == "a pattern over copies":
        shutil.copy(one, folder / "two.jsonl")
        return f"{folder}/*.jsonl"
    if way == "numbered parts":
        [shutil.copy(one, folder / f"train-{i}.jsonl") for i in range(2)]
        return folder


@pytest.mark.parametrize(
    "way",
    [
        "the same name",
        "another way to it",
        "a link",
        "a copy",
        "another format",
        "a table",
        "packed",
        "a pattern over two formats",
        "a pattern over copies",
        "numbered parts",
    ],
)
def test_rows_that_would_count_twice_are_refused(way, tmp_path):
    (tmp_path / "sub").mkdir()
    path = twins(tmp_path, way)
    with pytest.raises(ValueError) as e:
        load_preferences(path)
    said = str(e.value)
    assert any(words in said for words in ("the same file", "the same rows")) and any(
        name in said for name in ("one.", "train-0")
    ), said


def test_a_pattern_reads_a_file_and_its_packed_copy_once(tmp_path, caplog):
    one = put(tmp_path / "one.jsonl", rows(4))
    (tmp_path / "one.jsonl.gz").write_bytes(gzip.compress(one.read_bytes()))
    with caplog.at_level(logging.INFO, logger="slpo"):
        data = load_preferences(f"{tmp_path}/one*")
    assert numbers(data) == [0, 1, 2, 3] and "one.jsonl.gz" in caplog.text.partition("not read:")[2]


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_refused(name, tmp_path, monkeypatch, capsys):
    put(tmp_path / "train.jsonl"), put(tmp_path / "test.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the name is empty"):
        load_preferences(name)
    with pytest.raises(ValueError, match="the name is empty"):
        load_preferences(["train.jsonl", name])
    assert (
        train_main(
            [
                "--dataset_name",
                name,
                "--model_name_or_path",
                "none",
                "--output_dir",
                "out",
                "--report_to",
                "none",
            ]
        )
        == 2
    )
    assert "the name is empty" in capsys.readouterr().err
    assert len(load_preferences(".")) == 3


TWICE = [
    (
        "rows.jsonl",
        '\n{"prompt": "Q", "chosen": "y", "rejected": "n", "chosen": "z"}',
        "line 3: the key 'chosen' stands twice",
    ),
    (
        "rows.json",
        '\n{"prompt": "Q", "prompt": "P", "chosen": "y", "rejected": "n"}',
        "line 3: the key 'prompt' stands twice",
    ),
    (
        "rows.jsonl",
        '\n{"prompt": [{"role": "user", "content": "Q", "content": "P"}], "chosen": "y", "rejected": "n"}',  # noqa: E501
        "line 3: the key 'content' stands twice",
    ),
]


@pytest.mark.parametrize("name, line, message", TWICE)
@pytest.mark.parametrize("on_bad_rows", ["raise", "drop"])
def test_a_key_that_stands_twice_is_refused(name, line, message, on_bad_rows, tmp_path):
    (tmp_path / name).write_text("\n".join(map(json.dumps, rows(2))) + line)
    with pytest.raises(ValueError) as e:
        load_preferences(tmp_path / name, on_bad_rows=on_bad_rows)
    assert f"{name}: {message}" in str(e.value)


def test_a_key_or_a_column_that_stands_twice_is_refused_elsewhere(tmp_path):
    (tmp_path / "rows.json").write_text(
        '[{"prompt": "P", "chosen": "y", "rejected": "n"}, {"prompt": "Q", "chosen": "y", "rejected": "n", "rejected": "m"}]'  # noqa: E501
    )
    with pytest.raises(
        ValueError, match="rows.json: element 1 of the array: the key 'rejected' stands twice"
    ):
        load_preferences(tmp_path / "rows.json")
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected,chosen\nQ,y,n,z\n")
    with pytest.raises(ValueError, match="rows.csv: line 1: the column 'chosen' stands twice"):
        load_preferences(tmp_path / "rows.csv")
