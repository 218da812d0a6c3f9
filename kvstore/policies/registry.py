"""The policies and presets there are, by name."""

from __future__ import annotations

from collections.abc import Mapping

from kvstore.errors import UnknownPolicy
from kvstore.policies.adakv import AdaKV
from kvstore.policies.attention_matching import AttentionMatching
from kvstore.policies.base import Policy
from kvstore.policies.cascading import Cascading
from kvstore.policies.chunkkv import ChunkKV
from kvstore.policies.citrus import CItruS
from kvstore.policies.coverage import Coverage
from kvstore.policies.fastgen import FastGen
from kvstore.policies.full import Full
from kvstore.policies.h2o import H2O
from kvstore.policies.kvmerger import KVMerger
from kvstore.policies.lookback import Lookback
from kvstore.policies.parameters import from_parameters
from kvstore.policies.presets import PRESETS
from kvstore.policies.pyramid_infer import PyramidInfer
from kvstore.policies.pyramidkv import PyramidKV
from kvstore.policies.qfilters import QFilters
from kvstore.policies.razor_attention import RazorAttention
from kvstore.policies.reconstruction import Reconstruction
from kvstore.policies.sagekv import SageKV
from kvstore.policies.snapkv import SnapKV
from kvstore.policies.streaming_llm import StreamingLLM
from kvstore.policies.uncomp import UNComp
from kvstore.policies.vlcache import VLCache
from kvstore.policies.zeromerge import ZeroMerge

_KINDS: tuple[type[Policy], ...] = (
    Full,
    FastGen,
    Coverage,
    StreamingLLM,
    H2O,
    SnapKV,
    AdaKV,
    PyramidKV,
    PyramidInfer,
    ChunkKV,
    SageKV,
    QFilters,
    RazorAttention,
    Cascading,
    CItruS,
    VLCache,
    UNComp,
    ZeroMerge,
    KVMerger,
    Reconstruction,
    AttentionMatching,
    Lookback,
)
_POLICIES = {kind.name: kind for kind in _KINDS}
_PRESETS = {preset.name: preset for preset in PRESETS}


def parse_policy(name: str, parameters: Mapping[str, object]) -> Policy:
    """The policy or preset `name` with JSON-typed parameters over its defaults.

    Raises `UnknownPolicy`, or `InvalidParameter` with the field `policy.parameters.<key>`.
    """
    if preset := _PRESETS.get(name):
        return parse_policy(preset.policy, {**preset.parameters, **parameters})
    if name not in _POLICIES:
        raise UnknownPolicy(name, (*_POLICIES, *_PRESETS))
    policy: Policy = from_parameters(_POLICIES[name], parameters)
    return policy


def known_policies() -> tuple[tuple[str, dict[str, object]], ...]:
    """Every policy's name with its default parameters."""
    return tuple((name, policy().parameters()) for name, policy in _POLICIES.items())


def known_presets() -> tuple[tuple[str, Policy], ...]:
    """Every preset's name with the policy that it stands for."""
    return tuple((name, parse_policy(name, {})) for name in _PRESETS)
