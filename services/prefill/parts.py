"""The parts of one prefill process that its servicers share."""

from __future__ import annotations

import dataclasses

from kvstore.policies import parse_policy
from kvstore.tiers import WriteMode
from kvstore.wire import WireLimits
from services.prefill.calibration.calibrations import Calibrations
from services.prefill.compute.computation import Computation
from services.prefill.options import PrefillOptions, chunk_tokens_for
from services.prefill.sharing.cache_provider import CacheProvider
from services.prefill.sharing.prefill_queue import PrefillQueue
from services.prefill.sharing.unread_caches import UnreadCaches
from services.prefill.store.cache_store import CacheStore, StoreLimits
from services.prefill.store.stores import memory_tier, tiers_below
from services.runtime.model.served_model import ServedModel


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PrefillParts:
    """Parts for use on the event loop; the computation and the store have their own threads."""

    caches: CacheProvider
    store: CacheStore
    max_prompt_tokens: int


def build_parts(served: ServedModel, options: PrefillOptions) -> PrefillParts:
    """Build and connect the parts of the process. Raises what `tiers_below` raises."""
    store, longest = options.store, served.context_tokens
    limits = WireLimits(max_tokens=longest, max_layers=len(served.shapes))
    memory, below = memory_tier(store), tiers_below(store, limits)
    cache_store = CacheStore(
        memory,
        [memory, *below] if store.store_memory_bytes or not below else below,
        served.fingerprint,
        StoreLimits(
            timeout_seconds=store.store_timeout_seconds,
            max_keep_seconds=store.max_ttl_seconds,
            max_leases=store.max_leases,
            keeps_prompts=store.store_prompts,
        ),
        mode=WriteMode(store.store_write),
    )
    unread = UnreadCaches(options.send_buffer_bytes)
    calibrations = Calibrations(served, options.model.model_cache.expanduser())
    # measured at the start, because the first request would have to wait for it
    calibrations.needed_by(parse_policy(options.default_policy, {}))
    caches = CacheProvider(
        served,
        Computation(
            served,
            calibrations,
            chunk_tokens=chunk_tokens_for(options.chunk_tokens, options.model.device),
        ),
        PrefillQueue(options.max_queued, unread),
        cache_store,
        unread=unread,
        keeps_prompts=store.store_prompts,
    )
    return PrefillParts(caches, cache_store, min(options.max_prompt_tokens or longest, longest))
