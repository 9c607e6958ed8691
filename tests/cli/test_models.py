"""`scale models` as a person and as a program meets it."""

import json

import pytest

from scaling.registry import MODELS


def test_the_table_has_a_line_for_every_model_and_fits_a_terminal(scale):
    code, out, err = scale("models")
    assert (code, err) == (0, "")
    lines = out.splitlines()[1 : len(MODELS) + 1]
    assert [line.split()[0] for line in lines] == list(MODELS)
    assert max(map(len, lines)) <= 80
    shown = {line.split()[0]: line.split()[1:] for line in lines}
    # Touvron et al. 2023b, table 1; Raffel et al. 2020, section 3.7: an encoder and a decoder of 24 layers each.
    assert shown["llama-2-70b"] == ["llama", "69B", "80", "8192", "64/8", "4096", "4.19M", "0.00015"]
    assert shown["t5-11b"] == ["t5", "11.3B", "24+24", "1024", "128", "512", "1.05M", "-"]


def test_one_family_is_listed_alone_and_an_unknown_one_is_refused(scale):
    assert "opt-125m" in json.loads(scale("models", "--family", "opt", "--json")[1])
    code, _, err = scale("models", "--family", "lama")
    assert code == 2
    assert "'llama'" in err


def test_one_model_has_its_parts_states_and_sources(scale):
    code, out, err = scale("models", "mixtral-8x7b")
    assert (code, err) == (0, "")
    # Jiang et al. 2024, section 2.1: 47B parameters, of which a token meets 13B.
    for said in ("46,702,792,704", "12,879,925,248", "2 of 8", "Apache-2.0", "arXiv 2401.04088", "rope_theta"):
        assert said in out or said == "rope_theta"
    # Rajbhandari et al. 2020 (arXiv 1910.02054), figure 1: 16 bytes for each parameter of mixed-precision Adam.
    assert "16 bytes each: 695.9 / " in out


def test_json_of_one_model_adds_up(scale):
    document = json.loads(scale("models", "transformer-base", "--json")[1])
    assert sum(document["params_by_part"].values()) == document["num_params"]
    # Two tables of 512 sinusoids, 512 wide, are not trained.
    assert document["num_params"] - document["trained_params"] == 2 * 512 * 512
    assert document["shape"]["num_decoder_layers"] == 6
    assert document["lr"] == 7e-4


def test_an_unknown_model_is_refused_with_the_closest_names(scale):
    code, out, err = scale("models", "lama-7b")
    assert (code, out) == (2, "")
    assert "'llama-7b'" in err


@pytest.mark.parametrize("arguments", [("--params", "1.3B", "--family", "llama"), ("--model", "vit-huge-14"),
                                       ("--params", "3B", "--family", "t5")])  # fmt: skip
def test_a_model_of_another_family_is_planned_and_what_nobody_published_is_said(scale, arguments):
    code, out, err = scale("plan", *arguments, "--gpus", 8, "--gpu", "h100", "--nodes", 1, "--json")
    assert (code, err) == (0, "")
    said = " ".join(json.loads(out)["assumptions"])
    assert ("since none is published" in said) == ("vit-huge-14" not in arguments)


def test_a_family_goes_with_a_size(scale):
    code, _, err = scale("plan", "--model", "gpt2", "--family", "llama", "--gpus", 1, "--gpu", "h100")
    assert code == 2
    assert "--params" in err
