"""Named presets of what changes about a shopper, each isolating one difficulty."""

from __future__ import annotations

from typing import Any

# A preset sets only dynamics; the scale of utility belongs to the world.
SCENARIOS: dict[str, dict[str, Any]] = {
    # nothing changes: exploration and generalisation; planning wins nothing
    "static": {},
    # interest wanders and purchases pull it: tracking
    "drift": {"interest_pull": 0.02, "drift_scale": 0.08},
    # bought categories cool off: variety
    "satiation": {"satiation_gain": 1.0},
    # poor items cost trust: planning
    "trust": {"trust_weight": 2.0},
    # distrust and refusals drive shoppers away: retention
    "churn": {"churn": True},
    # all together, mild
    "full": {
        "interest_pull": 0.03,
        "drift_scale": 0.03,
        "satiation_gain": 1.0,
        "trust_weight": 1.25,
    },
}
