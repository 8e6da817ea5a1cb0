"""Should you fine-tune? An answer by measurement.

import tuneworthy as tw

decision = tw.decide("demo/home-commands")
print(decision.verdict, decision.arm, decision.because)
"""

from tuneworthy.api import (
    Checked,
    Decision,
    Exported,
    Fitted,
    Measured,
    Plan,
    Retuned,
    check,
    decide,
    evaluate,
    export,
    load,
    plan,
    retune,
    train,
)
from tuneworthy.errors import TuneworthyError

__version__ = "0.1.0"
__all__ = [
    "Checked",
    "Decision",
    "Exported",
    "Fitted",
    "Measured",
    "Plan",
    "Retuned",
    "TuneworthyError",
    "check",
    "decide",
    "evaluate",
    "export",
    "load",
    "plan",
    "retune",
    "train",
]
