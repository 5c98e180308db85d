"""Measurements of training, side by side with what the method is compared with."""

from promptembedder.benchmarks.corpus import CorpusBenchSettings, run_corpus
from promptembedder.benchmarks.corpus_report import corpus_markdown, write_corpus
from promptembedder.benchmarks.document import markdown_table, regenerate
from promptembedder.benchmarks.efficiency import EfficiencyProgress, run_efficiency
from promptembedder.benchmarks.efficiency_methods import METHODS
from promptembedder.benchmarks.efficiency_results import EfficiencyResult, efficiency_markdown, write_efficiency
from promptembedder.benchmarks.efficiency_settings import EfficiencySettings
from promptembedder.benchmarks.moving import MoveBenchConfig, MoveRun, bench_move
from promptembedder.benchmarks.moving_report import move_content, move_label, move_markdown, move_with_held, write_move
from promptembedder.benchmarks.quality import QualityConfig, bench_quality
from promptembedder.benchmarks.quality_methods import METHODS as QUALITY_METHODS
from promptembedder.benchmarks.quality_report import quality_content, quality_markdown, quality_with_held, write_quality
from promptembedder.benchmarks.quality_run import QualityRun
from promptembedder.benchmarks.reliability import CAMPAIGNS, ReliabilitySettings, run_reliability
from promptembedder.benchmarks.reliability_report import reliability_markdown, write_reliability
from promptembedder.benchmarks.result_content import provenance
from promptembedder.benchmarks.serving import ServingSettings, run_serving
from promptembedder.benchmarks.serving_report import serving_markdown, write_serving
from promptembedder.benchmarks.speed import SpeedSettings, run_speed, slowest_profile
from promptembedder.benchmarks.speed_report import speed_markdown, write_speed

__all__ = [
    "CAMPAIGNS",
    "METHODS",
    "QUALITY_METHODS",
    "CorpusBenchSettings",
    "EfficiencyProgress",
    "EfficiencyResult",
    "EfficiencySettings",
    "MoveBenchConfig",
    "MoveRun",
    "QualityConfig",
    "QualityRun",
    "ReliabilitySettings",
    "ServingSettings",
    "SpeedSettings",
    "bench_move",
    "bench_quality",
    "corpus_markdown",
    "efficiency_markdown",
    "markdown_table",
    "move_content",
    "move_label",
    "move_markdown",
    "move_with_held",
    "provenance",
    "quality_content",
    "quality_markdown",
    "quality_with_held",
    "regenerate",
    "reliability_markdown",
    "run_corpus",
    "run_efficiency",
    "run_reliability",
    "run_serving",
    "run_speed",
    "serving_markdown",
    "slowest_profile",
    "speed_markdown",
    "write_corpus",
    "write_efficiency",
    "write_move",
    "write_quality",
    "write_reliability",
    "write_serving",
    "write_speed",
]
