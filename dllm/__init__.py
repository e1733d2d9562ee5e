"""Fast parallel decoding of masked diffusion language models."""

from dllm import cache, compat, samplers, speculate
from dllm.adapt import adapt
from dllm.api import generate, stream
from dllm.canvas import Canvas, Span
from dllm.causal import generate_causal, stream_causal
from dllm.engine import Run
from dllm.errors import DllmError
from dllm.generation import Generation
from dllm.infill import infill
from dllm.loading import load
from dllm.settings import Settings
from dllm.streamer import Streamed
from dllm.trace import Step, Trace
from dllm.verify import Verification, verify

__version__ = "0.1.0"
__all__ = [
    "Canvas",
    "DllmError",
    "Generation",
    "Run",
    "Settings",
    "Span",
    "Step",
    "Streamed",
    "Trace",
    "Verification",
    "adapt",
    "cache",
    "compat",
    "generate",
    "generate_causal",
    "infill",
    "load",
    "samplers",
    "speculate",
    "stream",
    "stream_causal",
    "verify",
]
