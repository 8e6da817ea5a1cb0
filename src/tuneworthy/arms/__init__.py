"""Every way of doing the task, cheapest first."""

from __future__ import annotations

from tuneworthy.arms.base import Arm, Fit, Fitted, Task
from tuneworthy.arms.constrained import Constrained
from tuneworthy.arms.few_shot import FewShot
from tuneworthy.arms.linear import Linear
from tuneworthy.arms.prompting import SystemPrompt, ZeroShot
from tuneworthy.arms.rag import Rag
from tuneworthy.arms.recipe import Kitchen
from tuneworthy.arms.training import Trained

__all__ = ["ARMS", "Arm", "Fit", "Fitted", "Kitchen", "Task"]

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        ZeroShot(),
        SystemPrompt(),
        Constrained(),
        FewShot(),
        Rag(),
        Linear(),
        Trained("lora", "adapter"),
        Trained("full", "full"),
        Trained("few-shot+lora", "adapter", carries="few-shot"),
        Trained("rag+lora", "adapter", carries="rag"),
    )
}
