import pytest

from dllm.zoo.tasks import TASKS, make
from dllm.zoo.tokenizer import SPECIAL, VOCAB_SIZE, save_tokenizer, train_tokenizer

TEXTS = (
    "",
    " ",
    "12 + 5 = 17",
    "007 and 1234567890",
    "  \n\n \t x",
    "naïve Übung 😀 漢字 ١٢",
    "a\r\nb\u00a0c",
    "def f(x):\n        return x",
)


def texts():
    drawn = [make(task, 0, index) for task in TASKS for index in range(500)]
    return [text for problem in drawn for text in (problem.question, problem.answer)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(texts())


@pytest.fixture(scope="module")
def auto(tokenizer, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tokenizer, folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_every_number_to_199_is_one_token_wherever_it_stands(tokenizer):
    for number in map(str, range(200)):
        token = tokenizer.token_to_id(number)
        assert tokenizer.encode(number).ids == [token]
        for text in (f"12 + {number} = 17", f"has {number} apples", f"({number})", f"x{number}\n"):
            assert token in tokenizer.encode(text).ids


def test_any_text_comes_back(tokenizer):
    for text in (*TEXTS, *texts()[:300]):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_same_texts_give_the_same_tokenizer(tokenizer):
    assert train_tokenizer(texts()).to_str() == tokenizer.to_str() and tokenizer.get_vocab_size() <= VOCAB_SIZE


def test_transformers_loads_it_with_its_special_tokens(tokenizer, auto):
    assert len(auto) == tokenizer.get_vocab_size() and auto.convert_ids_to_tokens(range(len(SPECIAL))) == list(SPECIAL)
    assert (auto.mask_token, auto.eos_token, auto.bos_token) == ("<|mask|>", "<|endoftext|>", "<|startoftext|>")
    for text in TEXTS:
        assert auto(text)["input_ids"] == tokenizer.encode(text).ids and auto.decode(auto(text)["input_ids"]) == text


def test_the_chat_template_costs_ten_tokens(auto):
    messages = [{"role": "user", "content": " 12 + 5 =\n"}]
    text = auto.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert text == "<|startoftext|>" + header.format("user") + "12 + 5 =<|eot_id|>" + header.format("assistant")
    assert len(auto(text)["input_ids"]) == 10 + len(auto("12 + 5 =")["input_ids"])
