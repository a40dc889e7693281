"""The rates that NVIDIA publishes for its cards: operations and bytes per second that no graph can exceed.

All are dense; data sheets often give twice as much, for matrices of which half is zero. float32 is that of the CUDA
cores, because Cirrus builds plans without TF32. Accumulation is in float32. Sources: NVIDIA's data sheets of L4, L40S,
A10, A100 and H200, and its architecture papers of H100 and RTX PRO Blackwell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cirrus_client.bundle import Precision

_TERA, _GIGA = 10**12, 10**9


@dataclass(frozen=True)
class CardRates:
    """What a card does in a second at most. operations: a multiply-add is two; a precision it lacks is absent."""

    operations: Mapping[Precision, float]
    bytes: float


def _card(fp32: float, half: float, int8: float, fp8: float | None, gigabytes: float) -> CardRates:
    tera = {Precision.FP32: fp32, Precision.FP16: half, Precision.BF16: half, Precision.INT8: int8}
    if fp8 is not None:
        tera[Precision.FP8] = fp8
    return CardRates({precision: rate * _TERA for precision, rate in tera.items()}, gigabytes * _GIGA)


CARD_RATES = {
    "A10": _card(31.2, 125, 250, None, 600),
    "L4": _card(30.3, 121, 242.5, 242.5, 300),
    "L40S": _card(91.6, 362.05, 733, 733, 864),
    "RTX PRO 6000 Blackwell": _card(125, 503.8, 1007.6, 1007.6, 1792),
    "A100-SXM4-80GB": _card(19.5, 312, 624, None, 2039),
    "H100 80GB HBM3": _card(66.9, 989.4, 1978.9, 1978.9, 3350),
    "H200": _card(66.9, 989.4, 1978.9, 1978.9, 4800),
}
"""Name of a card, as CUDA says it behind "NVIDIA ", -> its rates."""


def rates_of(gpu: str) -> CardRates | None:
    """Return the rates of a GPU by CUDA's name, like "NVIDIA L40S", or None if they are not known.

    RTX PRO 6000's editions have longer names. The one with half the power, Max-Q, is slower and not known.
    """
    name = gpu.removeprefix("NVIDIA ")
    if name.startswith("RTX PRO 6000 Blackwell") and "Max-Q" not in name:
        name = "RTX PRO 6000 Blackwell"
    return CARD_RATES.get(name)
