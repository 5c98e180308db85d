"""Result files of the steering benchmark: JSON, Markdown and a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.document import markdown_table
from benchmarks.result_content import provenance_markdown
from benchmarks.steering.benchmark import SteeringRun
from promptembedder.storage import write_json, write_text

__all__ = ["steering_content", "steering_markdown", "write_steering"]

_SHARES = ("own", "others", "unseen_wording")


def steering_content(runs: Sequence[SteeringRun], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `steering.json`."""
    rows = [
        {
            "model": run.model,
            "variant": run.variant,
            "means": run.means(),
            "aspects": [asdict(score) for score in run.aspects],
            "questions": [{**asdict(score), "gain": score.gain} for score in run.questions],
        }
        for run in runs
    ]
    return {**provenance, "runs": rows}


def write_steering(folder: Path, content: Mapping[str, Any]) -> list[Path]:
    """Write `steering.json`, `.md` and `.png` into `folder`, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"steering.{ending}" for ending in ("json", "md")]
    write_json(paths[0], content)
    write_text(paths[1], steering_markdown(content))
    whole = [run for run in content["runs"] if run["variant"] == "whole" and run["aspects"]]
    if whole:
        paths.append(folder / "steering.png")
        _plot(whole, paths[-1])
    return paths


def steering_markdown(content: Mapping[str, Any]) -> str:
    """Return Markdown tables: means of all runs, shares of each attribute for whole models, provenance."""
    runs = content["runs"]
    kinds = list(dict.fromkeys(kind for run in runs for kind in run["means"]))
    header = ["model", "", *(f"{kind}: {share.replace('_', ' ')}" for kind in kinds for share in _SHARES)]
    cells = [
        [run["model"], run["variant"], *(_shown(run["means"].get(kind, {}).get(s)) for kind in kinds for s in _SHARES)]
        for run in runs
    ]
    parts = [markdown_table(header, cells)] if kinds else []
    files = list(dict.fromkeys(score["name"] for run in runs for score in run["questions"]))
    if files:
        answers = [
            [run["model"], run["variant"], *(_shown(_by_name(run).get(file, {}).get("gain")) for file in files)]
            for run in runs
        ]
        parts += [
            "Answer choice, percent of the way from blind to perfect:\n",
            markdown_table(["model", "", *files], answers),
        ]
    whole = [run for run in runs if run["variant"] == "whole" and run["aspects"]]
    if whole:
        names = [f"{run['model']}: own / others" for run in whole]
        rows = [
            [first["corpus"], first["attribute"], first["kind"]]
            + [f"{_shown(run['aspects'][i]['own'])} / {_shown(run['aspects'][i]['others'])}" for run in whole]
            for i, first in enumerate(whole[0]["aspects"])
        ]
        parts.append(markdown_table(["corpus", "attribute", "kind", *names], rows))
    parts += [
        "Percent of conflict triplets that are right under the attribute's own instruction, under those of the other "
        "attributes of the corpus, and under unseen wordings; 50 ignores the instruction.\n",
        *provenance_markdown(content),
    ]
    return "\n".join(parts)


def _by_name(run: Mapping[str, Any]) -> dict[str, Any]:
    return {score["name"]: score for score in run["questions"]}


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _plot(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot the shares under own and other instructions by corpus, one panel per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(runs), 5.2), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for panel, run in zip(panels, runs, strict=True):
        corpora = list(dict.fromkeys(score["corpus"] for score in run["aspects"]))
        for row, corpus in enumerate(reversed(corpora)):
            shares = [score for score in run["aspects"] if score["corpus"] == corpus]
            own = sum(score["own"] for score in shares) / len(shares)
            known = [score["others"] for score in shares if score["others"] is not None]
            others = sum(known) / len(known) if known else own
            panel.plot([others, own], [row, row], color="0.75", zorder=1)
            panel.scatter(
                [others], [row], color="tab:orange", zorder=2, label="others' instructions" if not row else None
            )
            panel.scatter([own], [row], color="tab:blue", zorder=2, label="own instruction" if not row else None)
        panel.axvline(50, color="0.4", linewidth=0.8, linestyle=":")
        panel.set_yticks(range(len(corpora)), list(reversed(corpora)))
        panel.set_title(run["model"], fontsize=10)
        panel.set_xlabel("conflict triplets right, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=120)
