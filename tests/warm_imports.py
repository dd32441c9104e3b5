"""What a run of stages imports, sooner or later."""

from posttrain.run.quiet import hush_libraries

hush_libraries()

import datasets  # noqa: E402, F401
import matplotlib.pyplot  # noqa: E402, F401
import peft  # noqa: E402, F401
from transformers import AutoModelForCausalLM, Trainer  # noqa: E402, F401
from trl import DPOTrainer, RewardTrainer, SFTTrainer  # noqa: E402, F401

import posttrain.distill.trainer  # noqa: E402
import posttrain.rl.trainer  # noqa: E402
import posttrain.run.pipeline  # noqa: E402, F401
