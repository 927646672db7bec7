"""Constrained decoding knows where the prompt ends: from the first call, or it says that it was told wrong."""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from semid_dataset import SemanticIdTable
from semid_dataset.errors import ConfigError, TableError
from semid_dataset.exports import (
    PrefixTrie,
    SemanticIdLogitsProcessor,
    prefix_allowed_tokens_fn,
    token_ids_of,
    token_list,
)

torch = pytest.importorskip("torch")

IDS = {1: [0, 1, 2], 2: [3, 1, 0], 3: [3, 2, 2]}
SIZES = (4, 4, 4)
END, VOCABULARY = 5, 60
TOKENS = [np.arange(10 + 4 * level, 14 + 4 * level) for level in range(3)]
REAL = {tuple(int(TOKENS[level][code]) for level, code in enumerate(codes)) for codes in IDS.values()}


def trie() -> PrefixTrie:
    return PrefixTrie.of(np.array(list(IDS.values()), np.uint8))


def generate(constrain: Callable[[Any, Any], Any], prompts: Any, steps: int = 4, seed: int = 0) -> Any:
    """What `model.generate` does with random scores: returns what follows the prompts."""
    generator = torch.Generator().manual_seed(seed)
    rows, begin = prompts, prompts.shape[1]
    for _ in range(steps):
        scores = constrain(rows, torch.randn(len(rows), VOCABULARY, generator=generator))
        rows = torch.cat([rows, scores.softmax(-1).multinomial(1, generator=generator)], 1)
    return rows[:, begin:]


def by_rows(function: Callable[[int, Any], list[int]]) -> Callable[[Any, Any], Any]:
    """As transformers asks a `prefix_allowed_tokens_fn`: once a row."""

    def constrain(rows: Any, scores: Any) -> Any:
        allowed = torch.full_like(scores, -torch.inf)
        for number, row in enumerate(rows):
            chosen = function(number, row)
            allowed[number, chosen] = scores[number, chosen]
        return allowed

    return constrain


def made(way: str, **options: Any) -> Callable[[Any, Any], Any]:
    if way == "function":
        return by_rows(prefix_allowed_tokens_fn(trie(), TOKENS, eos_token_id=END, **options))
    return SemanticIdLogitsProcessor(trie(), TOKENS, eos_token_id=END, **options)


def prompts_of(rows: int, length: int, seed: int = 0) -> Any:
    return torch.randint(6, 10, (rows, length), generator=torch.Generator().manual_seed(seed))


WAYS = ["processor", "function"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [0, 1, 5])
def test_the_first_call_says_how_long_the_prompt_is(way: str, length: int) -> None:
    """Also 0, as with inputs_embeds; every row is a real ID and its end."""
    found = generate(made(way), prompts_of(40, length))
    assert {tuple(row[:3].tolist()) for row in found} == REAL
    assert (found[:, 3] == END).all()


@pytest.mark.parametrize("way", WAYS)
def test_one_constraint_serves_many_generations(way: str) -> None:
    """Of longer, shorter and equal prompts, and one that goes on from where the last generation ended."""
    constrain = made(way)
    before = prompts_of(8, 3)
    for length in (3, 7, 3, 8, 2, 0, 4):
        found = generate(constrain, prompts_of(8, length, seed=length), seed=length)
        assert {tuple(row[:3].tolist()) for row in found} <= REAL, length
    found = generate(constrain, before)
    other = torch.cat([before, found[:, :3], torch.full((8, 1), 7)], 1)  # the ID, then more of a prompt
    assert {tuple(row[:3].tolist()) for row in generate(constrain, other)} <= REAL


@pytest.mark.parametrize("way", WAYS)
def test_a_length_that_is_too_large_is_an_error_at_once(way: str) -> None:
    """By one, or with inputs_embeds; it was two rows of nonsense, silently."""
    for said, length in ((6, 5), (5, 0)):
        with pytest.raises(
            TableError, match=rf"hands over {length} tokens where the prompt should have {said}.*first call"
        ):
            generate(made(way, prompt_length=said), prompts_of(2, length))


@pytest.mark.parametrize("way", WAYS)
def test_a_length_that_is_too_small_is_an_error_at_once(way: str) -> None:
    """The prompt's last token begins no ID."""
    with pytest.raises(TableError, match="leave prompt_length out"):
        generate(made(way, prompt_length=4), prompts_of(2, 5))


@pytest.mark.parametrize("length", [-1, 2.5, "3"])
def test_a_length_that_is_none_is_refused(length: Any) -> None:
    """A negative one would cut from the wrong end."""
    with pytest.raises(ConfigError, match="prompt_length"):
        made("processor", prompt_length=length)


def test_ids_follow_each_other_where_there_is_no_end() -> None:
    """The prompt's length from the first call too."""
    constrain = SemanticIdLogitsProcessor(trie(), TOKENS)
    found = generate(constrain, prompts_of(20, 2), steps=6)
    assert {tuple(row[:3].tolist()) for row in found} | {tuple(row[3:].tolist()) for row in found} <= REAL


needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason='transformers is missing: pip install ".[hf]"'
)


@needs_transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_given_embeddings_generates_real_ids(way: str) -> None:
    """transformers leaves the prompt out of what it hands over then."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    settings = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 1}
    model = GPT2LMHeadModel(GPT2Config(**settings, bos_token_id=0, eos_token_id=END, pad_token_id=0)).eval()
    embeds = model.get_input_embeddings()(prompts_of(6, 5))
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": True, "eos_token_id": END, "pad_token_id": 0}
    options["attention_mask"] = torch.ones(6, 5, dtype=torch.int64)
    if way == "function":
        options["prefix_allowed_tokens_fn"] = prefix_allowed_tokens_fn(trie(), TOKENS, eos_token_id=END)
    else:
        options["logits_processor"] = [SemanticIdLogitsProcessor(trie(), TOKENS, eos_token_id=END)]
    for given in ({"inputs_embeds": embeds}, {"input_ids": prompts_of(6, 5)}):
        found = model.generate(**given, **options)[:, -4:]
        assert {tuple(row[:3].tolist()) for row in found} <= REAL


# --- tokenizers that lower-case ---


class Lowering:
    """Reads texts in lower case, and adds tokens so, too, or as they are."""

    unk_token_id = 0

    def __init__(self, added: list[str], *, lowers_added: bool) -> None:
        self.numbers = {(token.lower() if lowers_added else token): 5 + k for k, token in enumerate(added)}

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [self.numbers.get(token, self.unk_token_id) for token in tokens]

    def tokenize(self, text: str) -> list[str]:
        text = text.lower()
        return [text] if text in self.numbers else list(text)


@pytest.mark.parametrize("lowers_added", [True, False])
def test_a_tokenizer_that_lower_cases_is_named(lowers_added: bool) -> None:
    """The style "item" has capitals, which no text has behind such a tokenizer; the others have none."""
    for style in ("letter", "s_letter"):
        numbers = token_ids_of(Lowering(token_list(SIZES, style), lowers_added=lowers_added), SIZES, style)
        assert [len(level) for level in numbers] == [4, 4, 4]
    wanted = "lower-cases: <item_L0_C0> becomes <item_l0_c0>" if lowers_added else "and yet reads it as"
    with pytest.raises(TableError, match=wanted):
        token_ids_of(Lowering(token_list(SIZES, "item"), lowers_added=lowers_added), SIZES, "item")


def test_the_command_line_says_so_where_it_is_exported(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anybody has trained on it."""
    pytest.importorskip("click")
    from semid_dataset.cli._app import run

    SemanticIdTable.from_mapping(IDS, codebook_sizes=4).save(tmp_path / "t.safetensors")
    line = ["export", str(tmp_path / "t.safetensors"), "-o", str(tmp_path / "x.tokens.json")]
    assert run([*line, "--style", "item"]) == 0
    assert "lower-cases" in capsys.readouterr().out
    assert run(line) == 0
    assert "lower-cases" not in capsys.readouterr().out
