"""The six operators of torch.library: sound by opcheck, and what torch.compile calls for a chain of ops."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend

from resclip_kernels import residual_attention, semantic_feedback
from resclip_kernels.testing import attention_inputs, kernel_device

GRID = (2, 3)
IMPLEMENTATIONS = ("torch", pytest.param("triton", marks=pytest.mark.kernels), "reference")


def operator(name: str) -> Any:
    return importlib.import_module(f"resclip_kernels.{name}.dispatch").operator
