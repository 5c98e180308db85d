"""Laws of the training picture and of reading a run's log."""

import csv
import json
from pathlib import Path

import pytest

from promptembedder.errors import DataError
from promptembedder.plots import RunLog, plot_training, read_run_log

ROWS = [
    {"step": 5, "seconds": 1.5, "loss": 2.0, "soft_token_entropy": 5.0, "grad_norm": 1.0},
    {"step": 5, "seconds": 1.6, "eval_sts_spearman_cosine": 0.4},
    {"step": 10, "seconds": 3.0, "loss": 1.0, "soft_token_entropy": 4.0, "grad_norm": 0.5},
]


def write_log(folder: Path, *, tail: str = "") -> Path:
    folder.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")
    return folder


def test_a_log_is_read_but_for_the_line_that_a_kill_cut_off(tmp_path: Path) -> None:
    log = read_run_log(write_log(tmp_path / "run", tail='{"step": 15, "lo'))
    assert (log.name, list(log.rows)) == ("run", ROWS)


def test_the_table_holds_every_number_that_was_drawn(tmp_path: Path) -> None:
    log = read_run_log(write_log(tmp_path / "run"))
    files = plot_training([log, log], tmp_path / "out" / "training")
    assert [path.name for path in files] == ["training.png", "training.svg", "training.csv"]
    with files[2].open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["run"] for row in table] == ["run"] * 3 + ["run (2)"] * 3  # equal names stay two lines
    assert [row["loss"] for row in table[:3]] == ["2.0", "", "1.0"]
    assert table[1]["eval_sts_spearman_cosine"] == "0.4"


def test_a_folder_without_a_log_is_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"contains no readable metrics.jsonl. Give the output folder"):
        read_run_log(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_runtime": 3}\nnot json\n', encoding="utf-8")
    with pytest.raises(DataError, match="at least one logged step"):
        read_run_log(tmp_path)


def test_one_quantity_alone_is_a_picture(tmp_path: Path) -> None:
    assert plot_training([RunLog(name="a", rows=[{"step": 1, "loss": 1.0}])], tmp_path / "one")[0].is_file()
