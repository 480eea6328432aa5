"""One rotary scaling of each kind that small heads of 8 entries can have."""

from coupled_sampling.export import RotaryScaling

LLAMA3 = RotaryScaling("llama3", 8.0, 1.0, 4.0, 40)
YARN = RotaryScaling("yarn", 4.0, 1.0, 3.0, 64, attention_factor=1.2)
OWN_FACTORS = RotaryScaling("factors", factors=(1.0, 1.5, 2.0, 6.0), attention_factor=1.3)
