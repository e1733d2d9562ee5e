"""The families of checkpoints that can be opened, by the class name in their config's `architectures`."""

from dllm.models import block, causal, dream, llada, llada_moe
from dllm.models.family import Family

FAMILIES: dict[str, Family] = {
    family.architecture: family
    for family in (llada.FAMILY, *llada_moe.FAMILIES, dream.FAMILY, *block.FAMILIES, *causal.FAMILIES)
}
