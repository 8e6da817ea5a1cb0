"""Should you fine-tune? An answer by measurement.

import tuneworthy as tw

decision = tw.decide("demo/home-commands")
print(decision.verdict, decision.arm, decision.because)
"""

from tuneworthy.api import (
    Checked,
    Decision,
    Fitted,
    Measured,
    Plan,
    check,
    decide,
    evaluate,
    load,
    plan,
    train,
)
from tuneworthy.errors import TuneworthyError

__version__ = "0.1.0"
__all__ = [
    "Checked",
    "Decision",
    "Fitted",
    "Measured",
    "Plan",
    "TuneworthyError",
    "check",
    "decide",
    "evaluate",
    "load",
    "plan",
    "train",
]
