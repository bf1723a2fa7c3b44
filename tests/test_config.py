import json

import pytest

from coltran_jax import config as configs
from coltran_jax.errors import ConfigError
from coltran_jax.networks.registry import NETWORKS


@pytest.mark.parametrize("cls", [network.config_class for network in NETWORKS.values()])
def test_there_and_back_through_json(cls):
    config = cls()
    assert configs.from_dict(cls, json.loads(json.dumps(configs.to_dict(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hiden_size": 3}, "unknown field hiden_size"),
        ({"stage": "both"}, "stage is 'both', expected one of"),
        ({"hidden_size": "512"}, "hidden_size is '512', expected int"),
        ({"hidden_size": True}, "hidden_size is True, expected int"),
        ({"resolution": [64]}, "resolution is"),
        ({"resolution": 64}, "resolution is 64, expected a list"),
        ({"hidden_size": 256}, "encoder.hidden_size is 512"),
        ({"resolution": [32, 32]}, "decoder.resolution is"),
        ({"encoder": {}}, "missing field encoder.hidden_size"),
    ],
)
def test_wrong_fields_are_named(change, message):
    values = {**configs.to_dict(configs.ColorizerConfig()), **change}
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        configs.from_dict(configs.ColorizerConfig, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cond_mlp": "both"}, "cond_mlp is 'both'"),
        ({"cond_ln_seq": "ss"}, "cond_ln_seq is 'ss'"),
        ({"cond_ln_act": "gelu"}, "cond_ln_act is 'gelu'"),
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"cond_att_scale": False, "cond_att_shift": False}, "at least one"),
    ],
)
def test_impossible_values_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        configs.DecoderConfig(**change)
