"""Are secrets hidden wherever a config holds them, and is all else left as it is?"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrainer.config import Config, parse_config
from xtrainer.config.redact import HIDDEN, is_secret, redact
from xtrainer.errors import ConfigError
from xtrainer.trainer.config import TrainerConfig

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    "name",
    [
        "token", "hf_token", "HF-TOKEN", "authToken", "secret", "client_secret", "secret_value",
        "password", "passwd", "db_password_2", "api_key", "apikey", "API_KEY", "wb_key",
        "aws_credentials", "private_key", "access_key", "logger.api_key",
    ],
)  # fmt: skip
def test_names_of_secrets(name):
    assert redact({"a": [{name: "canary"}]}) == {"a": [{name: HIDDEN}]}


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens", "num_tokens", "n_tokens", "tokens_per_example", "cls_token", "cls_token_init",
        "token_ids", "tokenizer", "tokenizer_path", "eos_token", "pad_token_id", "eos_token_id",
        "token_mixer", "key", "keys", "monkey", "passes", "name", "class_name", "rng_key",
    ],
)  # fmt: skip
def test_names_of_other_things(name):
    assert not is_secret(name)
    assert redact({name: "value"}) == {name: "value"}


def test_all_texts_below_a_secret_name_are_hidden_and_numbers_are_not():
    found = redact({"credentials": {"user": "a", "keys": ["b", {"$tuple": ["c"]}], "port": 80}})
    assert found == {
        "credentials": {"user": HIDDEN, "keys": [HIDDEN, {"$tuple": [HIDDEN]}], "port": 80}
    }


def test_the_class_of_a_config_and_pairs_of_a_mapping_are_understood():
    pairs = {"$pairs": [["password", "a"], [3, "b"], [{"$tuple": [1]}, {"token": "c"}]]}
    assert redact({"password": {"class_name": "A", "value": "b"}, "x": pairs}) == {
        "password": {"class_name": "A", "value": HIDDEN},
        "x": {"$pairs": [["password", HIDDEN], [3, "b"], [{"$tuple": [1]}, {"token": HIDDEN}]]},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:pw@host:80/a", "https://***@host:80/a"),
        ("see s3+x://key@host and ftp://a:b@c", "see s3+x://***@host and ftp://***@c"),
        ("http://host/a@b", "http://host/a@b"),
        ("mail@example.org", "mail@example.org"),
        ("h://x/?a=1&api_key=k&b=2#t", "h://x/?a=1&api_key=***&b=2#t"),
        ("h://x/?token=a%20b", "h://x/?token=***"),
        ("--config.hf_token=abc --a.max_tokens=8", "--config.hf_token=*** --a.max_tokens=8"),
        ("a=b, password='c d', e=f", "a=b, password=***, e=f"),
        ('password="c" e', "password=*** e"),
    ],
)  # fmt: skip
def test_secrets_within_a_text(text, expected):
    assert redact({"x": text}) == {"x": expected}


def test_a_long_text_takes_little_time():
    for text in ("a" * 10**6, "a=" * 10**6, "://" * 10**6, "://a" * 10**6, "-" * 10**6):
        redact(text)


@given(JSON)
@settings(derandomize=True, max_examples=50, deadline=None)
def test_redacted_twice_is_redacted_once(value):
    once = redact(value)
    assert redact(once) == once
    assert json.dumps(once)


def test_errors_hide_them_too():
    from ml_collections import ConfigDict

    config = ConfigDict({"api_key": 3, "url": 4})
    for argument in ("--config.api_key=canary", "--config.url=h://canary@x", "--api_key=canary"):
        with pytest.raises(ConfigError) as caught:
            parse_config(config, [argument])
        assert "canary" not in str(caught.value) and HIDDEN in str(caught.value)
    with pytest.raises(ConfigError, match=r"seed: found 'h://\*\*\*@x' \(str\)"):
        Config.from_dict(TrainerConfig, {"seed": "h://canary@x"})
