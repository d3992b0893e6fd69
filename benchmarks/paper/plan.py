"""All stages of a size, in the order in which they run."""

from benchmarks.paper.experiments.gram_study import gram_study_stages
from benchmarks.paper.experiments.models import base_stage
from benchmarks.paper.experiments.precision import precision_stages
from benchmarks.paper.experiments.robustness import robustness_stages
from benchmarks.paper.experiments.sequence import sequence_stages
from benchmarks.paper.experiments.step import step_stages
from benchmarks.paper.experiments.studies import blocks_study_stages, guards_study_stages
from benchmarks.paper.experiments.tables import table_stages
from benchmarks.paper.experiments.tofu import tofu_stages
from benchmarks.paper.experiments.variations import variation_stages
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.stages import Stage


def plan(sizes: Sizes) -> list[Stage]:
    """The stages; after what is read by all, those that the bars hang on come first."""
    return [
        base_stage(sizes.base),
        *precision_stages(sizes),
        *tofu_stages(sizes),
        *step_stages(sizes),
        *sequence_stages(sizes),
        *gram_study_stages(sizes),
        *blocks_study_stages(sizes),
        *guards_study_stages(sizes),
        *robustness_stages(sizes),
        *table_stages(sizes),
        *variation_stages(sizes),
    ]
