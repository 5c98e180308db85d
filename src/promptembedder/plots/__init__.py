"""Pictures of measurements, from plain data: PNG and SVG, readable in black and white."""

from promptembedder.plots.efficiency import StepPoint, plot_memory, plot_step_time
from promptembedder.plots.quality import QualityCurve, QualityPoint, TaskScorePoint, plot_quality_over_time
from promptembedder.plots.quality import plot_task_scores as plot_task_scores

__all__ = [
    "QualityCurve",
    "QualityPoint",
    "StepPoint",
    "TaskScorePoint",
    "plot_memory",
    "plot_quality_over_time",
    "plot_step_time",
    "plot_task_scores",
]
