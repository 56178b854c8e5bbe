"""Names for what enters from libraries whose types are partial. What is done with it checks it, where it enters."""

from __future__ import annotations

from typing import Any

HFModel = Any  # a model of transformers: a causal language model, its trunk, a classifier
HFModule = Any  # a module within one: a layer, a norm, an attention
HFConfig = Any  # its configuration
HFCache = Any  # its keys and values
AutogradContext = Any  # what torch hands to the halves of an autograd function
