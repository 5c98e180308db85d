"""Figures of measurements from plain data: PNG and SVG, readable in black and white."""

from promptembedder.plots.quality import (
    CostPoint,
    QualityCurve,
    QualityPoint,
    TaskScorePoint,
    plot_quality_over_time,
    plot_score_against_cost,
    plot_task_scores,
    plot_transfers,
    transfer_label,
)
from promptembedder.plots.training import (
    RunLog,
    StepPoint,
    plot_memory,
    plot_step_time,
    plot_training,
    read_run_log,
)
from promptembedder.plots.vectors import PlaneView, align_view, plane_view, plot_map, plot_similarity

__all__ = [
    "CostPoint",
    "PlaneView",
    "QualityCurve",
    "QualityPoint",
    "RunLog",
    "StepPoint",
    "TaskScorePoint",
    "align_view",
    "plane_view",
    "plot_map",
    "plot_memory",
    "plot_quality_over_time",
    "plot_score_against_cost",
    "plot_similarity",
    "plot_step_time",
    "plot_task_scores",
    "plot_training",
    "plot_transfers",
    "read_run_log",
    "transfer_label",
]
