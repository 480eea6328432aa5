"""All planted bugs, by what they break.

A bug belongs here if somebody could write it, and if it changes what the library promises: the law, the tokens at a
seed, the speed, the bookkeeping. A change that no promise forbids is not a bug.
"""

from __future__ import annotations

from bugs_of_auto_branches import BUGS as AUTO_BRANCHES
from bugs_of_causal_windows import BUGS as CAUSAL_WINDOWS
from bugs_of_checkpoints import BUGS as CHECKPOINTS
from bugs_of_clips_http import BUGS as CLIPS_HTTP
from bugs_of_context import BUGS as CONTEXT
from bugs_of_corrected_step_graphs import BUGS as CORRECTED_STEP_GRAPHS
from bugs_of_correction_tables import BUGS as CORRECTION_TABLES
from bugs_of_corrections import BUGS as CORRECTIONS
from bugs_of_cosmos import BUGS as COSMOS
from bugs_of_drafts_and_models import BUGS as DRAFTS_AND_MODELS
from bugs_of_encoder_decoders import BUGS as ENCODER_DECODERS
from bugs_of_families import BUGS as FAMILIES
from bugs_of_files import BUGS as FILES
from bugs_of_fitting import BUGS as FITTING
from bugs_of_foreign_graphs import BUGS as FOREIGN_GRAPHS
from bugs_of_grammars import BUGS as GRAMMARS
from bugs_of_guidance import BUGS as GUIDANCE
from bugs_of_half_precision import BUGS as HALF_PRECISION
from bugs_of_kernels import BUGS as KERNELS
from bugs_of_laws import BUGS as LAWS
from bugs_of_learning import BUGS as LEARNING
from bugs_of_networks import BUGS as NETWORKS
from bugs_of_noise import BUGS as NOISE
from bugs_of_openvino import BUGS as OPENVINO
from bugs_of_plugins import BUGS as PLUGINS
from bugs_of_processors import BUGS as PROCESSORS
from bugs_of_published_settings import BUGS as PUBLISHED_SETTINGS
from bugs_of_quantised_weights import BUGS as QUANTISED_WEIGHTS
from bugs_of_readers import BUGS as READERS
from bugs_of_requests import BUGS as REQUESTS
from bugs_of_rows import BUGS as ROWS
from bugs_of_serving import BUGS as SERVING
from bugs_of_small_files import BUGS as SMALL_FILES
from bugs_of_step_engines import BUGS as STEP_ENGINES
from bugs_of_step_graphs import BUGS as STEP_GRAPHS
from bugs_of_text import BUGS as TEXT
from bugs_of_the_loop import BUGS as LOOP
from bugs_of_the_proof_tool import BUGS as PROOF_TOOL
from bugs_of_the_step import BUGS as STEP
from bugs_of_tree_kernels import BUGS as TREE_KERNELS
from bugs_of_tree_providers import BUGS as TREE_PROVIDERS
from bugs_of_tree_step_graphs import BUGS as TREE_STEP_GRAPHS
from bugs_of_trees import BUGS as TREES
from bugs_of_trees_in_graphs import BUGS as TREES_IN_GRAPHS
from bugs_of_trees_on_ort import BUGS as TREES_ON_ORT
from bugs_of_video_pixels import BUGS as VIDEO_PIXELS
from bugs_of_windows_and_step_graphs import BUGS as WINDOWS_AND_STEP_GRAPHS
from planting import Bug

__all__ = ["BUGS"]

BUGS: tuple[Bug, ...] = (
    *SERVING,
    *AUTO_BRANCHES,
    *CAUSAL_WINDOWS,
    *CHECKPOINTS,
    *CLIPS_HTTP,
    *CONTEXT,
    *CORRECTIONS,
    *CORRECTION_TABLES,
    *COSMOS,
    *FITTING,
    *DRAFTS_AND_MODELS,
    *FAMILIES,
    *FILES,
    *ENCODER_DECODERS,
    *FOREIGN_GRAPHS,
    *GRAMMARS,
    *GUIDANCE,
    *HALF_PRECISION,
    *KERNELS,
    *LAWS,
    *LEARNING,
    *NETWORKS,
    *NOISE,
    *OPENVINO,
    *PLUGINS,
    *PROCESSORS,
    *PUBLISHED_SETTINGS,
    *QUANTISED_WEIGHTS,
    *READERS,
    *REQUESTS,
    *ROWS,
    *SMALL_FILES,
    *STEP_ENGINES,
    *STEP_GRAPHS,
    *CORRECTED_STEP_GRAPHS,
    *TEXT,
    *LOOP,
    *PROOF_TOOL,
    *STEP,
    *TREE_STEP_GRAPHS,
    *TREES_IN_GRAPHS,
    *TREE_PROVIDERS,
    *TREES_ON_ORT,
    *TREES,
    *TREE_KERNELS,
    *VIDEO_PIXELS,
    *WINDOWS_AND_STEP_GRAPHS,
)
