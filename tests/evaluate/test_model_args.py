"""Published --model_args are understood as their authors meant them; what is not understood is refused in one line."""

import pytest

import dllm
from dllm.api import choose_cache, choose_sampler
from dllm.cache import DualCache, NoCache, PrefixCache
from dllm.errors import DllmError
from dllm.evaluate.model_args import asked, opened, read, wraps
from dllm.samplers import DParallel, Entropy, Factor, MaskgitPlus, Random, Static, Threshold

lm_eval_utils = pytest.importorskip("lm_eval.utils")

PUBLISHED = {
    # Fast-dLLM, llada/eval_gsm8k.sh: baseline, prefix cache, parallel, dual cache with factor
    "llada_dist gen_length=256,steps=256,block_length=32,show_speed=True": (Static(), NoCache(), 256, 32),
    "llada_dist gen_length=256,steps=256,block_length=32,use_cache=True,show_speed=True": (
        *(Static(), PrefixCache()),
        *(256, 32),
    ),
    "llada_dist gen_length=256,steps=8,block_length=32,use_cache=True,dual_cache=True,threshold=0.9,show_speed=True,"
    "save_dir=answers": (Threshold(0.9), DualCache(), 256, 32),
    "llada_dist gen_length=256,steps=8,block_length=32,use_cache=True,dual_cache=True,factor=1.0": (
        *(Factor(1.0), DualCache()),
        *(256, 32),
    ),
    # LLaDA, eval_llada_lm_eval.sh: likelihoods, and generation with the whole answer as one block
    "llada_dist cfg=0.5,is_check_greedy=False,mc_num=128": (Static(), NoCache(), 1024, 1024),
    "llada_dist gen_length=1024,steps=1024,block_length=1024": (Static(), NoCache(), 1024, 1024),
    "llada_dist gen_length=256,steps=256,block_length=256,remasking=random": (Random(), NoCache(), 256, 256),
    # Dream, eval/eval_dream_gen.sh and eval_instruct/eval.sh
    "dream max_new_tokens=256,diffusion_steps=256,temperature=0.2,top_p=0.95,add_bos_token=true,escape_until=true": (
        *(Entropy(), NoCache()),
        *(256, None),
    ),
    'diffllm trust_remote_code=True,max_new_tokens=256,diffusion_steps=256,dtype="bfloat16",temperature=0.1,top_p=0.9,'
    'alg="entropy",alg_temp=0.0': (Entropy(alg_temp=0.0), NoCache(), 256, None),
    # Fast-dLLM, dream/eval_gsm8k.sh
    "dream max_new_tokens=256,diffusion_steps=8,add_bos_token=true,alg=confidence_threshold,threshold=0.9,"
    "use_cache=true,dual_cache=true,show_speed=True": (Threshold(0.9), DualCache(), 256, None),
    # dParallel and d3LLM
    "diffllm max_new_tokens=256,diffusion_steps=256,alg=entropy_threshold,dParallel=True,threshold=0.5": (
        *(DParallel(0.5), NoCache()),
        *(256, None),
    ),
    "dream alg=maskgit_plus,max_new_tokens=512,diffusion_steps=512": (MaskgitPlus(), NoCache(), 512, None),
    "llada_dist gen_length=256,steps=256,block_length=32,show_speed=True,task=humaneval,parallelize=False": (
        *(Static(), NoCache()),
        *(256, 32),
    ),
    # our own name, with the methods as everywhere here
    "dllm sampler=threshold:threshold=0.8,cache=prefix,gen_length=64": (Threshold(0.8), PrefixCache(), 64, None),
}


def parsed(text, **more):
    name, _, args = text.partition(" ")
    return read(name, {"model_path": "tiny-llada"} | lm_eval_utils.simple_parse_args_string(args) | more)


@pytest.mark.parametrize("line", PUBLISHED)
def test_a_published_command_line_means_what_its_authors_say(line):
    sampler, cache, gen_length, block_length = PUBLISHED[line]
    settings = dict(parsed(line).settings)
    remasking = settings.pop("remasking", "low_confidence")
    assert choose_sampler(settings.pop("sampler", None), remasking, settings) == sampler
    assert choose_cache(settings.pop("cache", None), settings) == cache
    assert (settings["gen_length"], settings.get("block_length")) == (gen_length, block_length)


def test_options_of_the_harness_are_kept_apart():
    args = parsed(
        "dream dtype=auto,mc_num=16,is_check_greedy=False,show_speed=True,save_dir=s,add_bos_token=true,"
        "escape_until=true,chat=True,max_prompt_len=1024,max_length=4096,classifier_free_guidance=1.5,nll_type=mc"
    )
    assert (args.mc_num, args.is_check_greedy, args.show_speed, args.save_dir) == (16, False, True, "s")
    assert (args.add_bos_token, args.escape_until, args.chat, args.max_prompt_len) == (True, True, True, 1024)
    assert args.dtype is None and args.ignored == ["max_length"] and args.settings["cfg_scale"] == 0.5


@pytest.mark.parametrize(("given", "kept"), [("auto", None), ("8", 8), (4, 4), (None, None)])
def test_the_harness_says_the_batch_size_as_a_number_or_text(given, kept):
    assert parsed("dllm", batch_size=given).settings.get("batch_size") == kept


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dllm treshold=0.9", "unknown argument 'treshold'; did you mean 'threshold'"),
        ("dllm mc_nun=1", "did you mean 'mc_num'"),
        ("dllm sampler=thresh", "unknown sampler 'thresh'"),
        ("dllm gen_length=0", "gen_length=0"),
        ("dllm gen_length=4,max_new_tokens=8", "gen_length is given twice, the second time as max_new_tokens=8"),
        ("dllm pretrained=tiny-dream", "pretrained is given twice"),
        ("dllm nll_type=ar_ftb", "nll_type='ar_ftb' is not known here"),
        ("dllm mc_num=0", "mc_num=0 draws no mask"),
        ("dllm mc_num=many", "mc_num=many is not of type int"),
        ("dllm batch_size=some", "batch_size=some is not of type int"),
    ],
)
def test_what_is_not_understood_is_refused(line, message):
    with pytest.raises(DllmError, match=message):
        parsed(line)


def test_a_model_must_be_named_and_have_a_tokenizer(tiny):
    with pytest.raises(DllmError, match="no model is given"):
        read("dllm", {"gen_length": 4})
    with pytest.raises(DllmError, match="has no tokenizer"):
        opened(read("dllm", {"pretrained": tiny()}))


def test_the_model_comes_before_the_task_and_gen_kwargs_before_the_model():
    task = {"until": ["Q:"], "do_sample": False, "temperature": 0.7, "max_gen_toks": 99}
    assert asked(parsed("dllm").settings, task)["gen_length"] == 99
    assert "temperature" not in asked(parsed("dllm").settings, task)
    assert asked(parsed("dllm").settings, task | {"do_sample": True})["temperature"] == 0.7
    assert asked(parsed("dllm temperature=0.2,gen_length=8").settings, task)["gen_length"] == 8
    assert asked(parsed("dllm gen_length=8").settings, task | {"gen_length": 16})["gen_length"] == 16
    assert asked(parsed("llada_dist").settings, {"threshold": 0.5})["threshold"] == 0.5
    with pytest.raises(DllmError, match="did you mean 'block_length'"):
        asked(parsed("dllm").settings, {"blok_length": 4})


def test_prompts_become_turns_where_the_harness_of_that_name_makes_them_so():
    instruct, base = (read("llada_dist", {"pretrained": name}) for name in ("GSAI-ML/LLaDA-8B-Instruct", "LLaDA-1.5"))
    assert wraps("llada_dist", instruct, False) and not wraps("llada_dist", base, False)
    assert not wraps("llada_dist", instruct, True), "never twice"
    assert not wraps("dream", instruct, False) and wraps("dllm", parsed("dllm chat=True"), False)
    assert not wraps("llada_dist", read("llada_dist", {"pretrained": "a-Instruct", "chat": False}), False)


def test_a_cuda_device_that_is_not_there_is_not_insisted_on(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert opened(parsed("dllm", device="cuda:0")).device.type == "cpu"
    assert isinstance(opened(parsed("dllm")), type(dllm.load("tiny-llada")))
