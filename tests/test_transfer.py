"""No step makes the host wait for a GPU but where it reads what it decides on; checked by what is called on a CPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cases
import dllm
from dllm import stream, transfer

aten = torch.ops.aten
LOOKS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.repeat_interleave,
}
"""What reads numbers of the device to go on, or to know how large its result is."""
COUNTING = [
    name
    for name, made in ((name, dllm.samplers.make(name)) for name in cases.SAMPLER_NAMES)
    if made.needs().noise or hasattr(made, "eps")
]
"""Their noise or their timesteps begin with tensors of the host, which would be taken for a GPU's here."""


class Waits(TorchDispatchMode):
    """Fails where a GPU would be waited for; what is sent and read in the ways that are meant for it is counted."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.sent, self.read, self.sending = 0, 0, False
        self.numbers = []
        """Numbers on the host, which may fill memory of the device, but would be sent to be copied there."""
        put, tolist = transfer.put, torch.Tensor.tolist

        def sends(*given):
            self.sent, self.sending = self.sent + 1, True
            made = put(*given)
            self.sending = False
            return made

        def reads(tensor):
            self.read += 1
            return tolist(tensor)

        monkeypatch.setattr(transfer, "put", sends)
        monkeypatch.setattr(transfer, "near", lambda _: False)
        monkeypatch.setattr(torch.Tensor, "tolist", reads)
        for name in ("cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a tensor was fetched"))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        assert packet not in LOOKS, f"{func} looks at the device"
        assert packet is aten.fill_ or not any(arg is number for arg in args for number in self.numbers), "was sent"
        if packet in (aten.index, aten.index_put, aten.index_put_):
            assert all(at is None or at.dtype != torch.bool for at in args[1]), f"{func} by a mask looks at the device"
        made = func(*args, **(kwargs or {}))
        if packet is aten.lift_fresh and not self.sending:  # torch.tensor, or a number that is assigned
            assert made.ndim == 0, "a list was sent by torch.tensor"
            self.numbers.append(made)
        return made


@pytest.fixture
def waits(monkeypatch):
    return Waits(monkeypatch)


def decode(waits, *asked, **settings):
    """Take all steps. Returns the run, and how often it looked where it stands."""
    run, surveys = stream(*asked, **cases.SHAPE | settings), []
    survey = run.survey
    run.survey = lambda at: surveys.append(at) or survey(at)
    waits.sent = waits.read = 0
    with waits:
        for _ in run:
            pass
    return run, len(surveys)


@pytest.mark.parametrize("sampler", [name for name in cases.SAMPLER_NAMES if name not in COUNTING])
def test_no_sampler_waits(model, waits, sampler):
    _, surveys = decode(waits, model, cases.PROMPTS, sampler, "dual:refresh=3", batch_size=2)
    # A finished answer is fetched, and which rows stay when some are gone for good.
    assert waits.read <= surveys + 2 * len(cases.PROMPTS)


@pytest.mark.parametrize("cache", [c for c in cases.CACHE_NAMES + cases.BLOCK_CACHE_NAMES if "elastic" not in c])
def test_no_cache_waits(tiny, waits, cache):
    sampler = "static" if cases.legal("static", cache) else "wino"
    if not cases.legal(sampler, cache):
        pytest.skip("the samplers that it serves draw")
    _, surveys = decode(waits, tiny(**cases.served(cache)), cases.PROMPTS, sampler, cache, batch_size=3)
    assert waits.read <= surveys + 2 * len(cases.PROMPTS)


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_drafts_and_an_end_of_text_do_not_wait(model, waits, cache):
    _, surveys = decode(waits, model, cases.PROMPTS, "static", cache, drafts=3, eotp=0.5, batch_size=2)
    assert waits.read <= surveys + 2 * len(cases.PROMPTS)


def test_guidance_does_not_wait(model, waits):
    run, surveys = decode(waits, model, cases.PROMPTS, "threshold:threshold=0.6", "dual", cfg_scale=0.5)
    assert waits.read <= surveys + 2 * len(run.states) * len(cases.PROMPTS)


def test_a_step_in_the_middle_of_a_block_sends_nothing_and_reads_once(model, waits):
    prompts = [[3, 1, 4], [1, 5, 9]]  # of one length, so that all rows are always computed together
    run = stream(model, prompts, "static", "dual", gen_length=4, block_length=4, eos_early_stop=False)
    moved, waits.sent = [], 0  # the prompts were sent before
    with waits:
        for _ in run:
            moved.append((waits.sent, waits.read))
            waits.sent = waits.read = 0
    quotas = len(prompts)  # each row learns how much it reveals in the steps of its block
    assert moved == [(quotas, 1), (0, 1), (0, 1), (0, 1)]


def test_numbers_arrive(device):
    assert transfer.put([[3, 1], [4, 1]], torch.device(device)).tolist() == [[3, 1], [4, 1]]
    assert transfer.near(torch.device("cpu")) and not transfer.near(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cache", ["dual:refresh=3", "exact"])
def test_a_gpu_is_waited_for_only_where_the_host_reads(tiny, monkeypatch, cache):
    tolist = torch.Tensor.tolist

    def reads(tensor):
        torch.cuda.set_sync_debug_mode("default")
        read = tolist(tensor)
        torch.cuda.set_sync_debug_mode("error")
        return read

    model = tiny(device="cuda", **cases.served(cache))
    run = stream(model, cases.PROMPTS, "threshold:threshold=0.6", cache, **cases.SHAPE, graphs=False, batch_size=2)
    monkeypatch.setattr(torch.Tensor, "tolist", reads)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len([*run]) > 4
    finally:
        torch.cuda.set_sync_debug_mode("default")
